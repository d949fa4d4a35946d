# SPDX-License-Identifier: MIT
"""What the package costs short calls: a model's forward on 1 to 64 tokens against stock, and the
time of one call into the library beside its work.

usage: overhead.py [MODEL]     a folder, or `random` (default) for Qwen2.5-0.5B's shape
"""

import statistics
import sys
import time

import numpy as np
import torch
import transformers
from ttft_transformers import load

import tokensparse
import tokensparse.transformers as ts


def per_call(function, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def main():
    q = np.zeros((1, 1, 8), np.float32)
    out = np.zeros_like(q)
    context = tokensparse.Context("cpu", threads=1)
    for name, call in {
        "numpy": lambda: tokensparse.prefill(q, q, q, out=out, coverage=0, context=context),
        "torch": lambda t=torch.from_numpy(q), o=torch.from_numpy(out): tokensparse.prefill(
            t, t, t, out=o, coverage=0, context=context
        ),
    }.items():
        per_call(call, 200)
        print(f"one call, {name}: {min(per_call(call, 500) for _ in range(5)) * 1e6:.1f} us")

    model = load(sys.argv[1] if len(sys.argv) > 1 else "random", torch.float32, "cpu")
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        model(torch.randint(1, 50000, (1, 1024)), past_key_values=cache)
        for length in (1, 4, 16, 64):
            ids = torch.randint(1, 50000, (1, length))
            times = {"sdpa": [], ts.NAME: []}
            for _ in range(32):
                for name, found in times.items():
                    model.set_attn_implementation(name)
                    start = time.perf_counter()
                    model(ids, past_key_values=cache, logits_to_keep=1)
                    found.append(time.perf_counter() - start)
                    cache.crop(-length)
            stock, ours = (statistics.median(found[2:]) for found in times.values())
            print(
                f"{length:3d} tokens on 1,024: stock {stock * 1e3:.1f} ms, ours {ours / stock:.3f}"
            )


if __name__ == "__main__":
    main()
