# SPDX-License-Identifier: MIT
"""What the package costs short calls: a model's forward on 1 to 64 tokens against stock, the
attention function alone, and the time of one call into the library beside its work.

usage: overhead.py [MODEL]     a folder, or `random` (default) for Qwen2.5-0.5B's shape
       overhead.py --cuda      on a GPU: what the host does for one layer of a vLLM step, planned and not,
                               beside torch's own attention; nothing waits for the GPU meanwhile
"""

import statistics
import sys
import time

import numpy as np
import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from ttft_transformers import load

import tokensparse
import tokensparse.transformers as ts


def per_call(function, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def attention_alone(config, length):
    """Medians of the stock attention function and ours in a layer, `length` rows on 1,024."""
    module = torch.nn.Module()
    module.config, module.layer_idx, module.is_causal = config, 0, True
    module.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
    dim = config.hidden_size // config.num_attention_heads
    q = torch.randn(1, config.num_attention_heads, length, dim)
    k, v = torch.randn(2, 1, config.num_key_value_heads, 1024 + length, dim)
    mask = None
    if length > 1:
        mask = torch.ones(1, 1, length, 1024 + length, dtype=torch.bool).tril(1024)
    functions = (sdpa_attention_forward, ts.attention)
    times = [[], []]
    for _ in range(30):
        for function, found in zip(functions, times):
            call = lambda: function(module, q, k, v, mask, scaling=dim**-0.5)  # noqa: B023
            found.append(per_call(call, 20))
    return [statistics.median(found[2:]) for found in times]


def on_gpu(rows=4096, heads=12, kv_heads=2, dim=128, layers=28):
    """Host time of a layer while the GPU has enough to do, and what the GPU needs for it."""
    import tokensparse.vllm.planned as planned
    from tokensparse._arrays import Paged
    from tokensparse._served import ServedLayer
    from tokensparse.vllm.steps import Run
    from tokensparse.vllm.tally import tallies_of

    device = torch.device("cuda", 0)
    made = dict(device=device, dtype=torch.bfloat16)
    q, out = torch.randn(rows, heads, dim, **made), torch.empty(rows, heads, dim, **made)
    pages = tuple(torch.randn(rows // 16, 2, 16, kv_heads, dim, **made).unbind(1))
    table = torch.arange(rows // 16, dtype=torch.int32, device=device)[None]
    setting = tokensparse.Setting(keep=0.43)
    run = Run(0, 1, slice(0, rows), (0, rows), (0, rows), rows, long=True)
    config = type("Config", (), {"num_hidden_layers": layers})()
    served = ServedLayer(1, setting, config)
    tally = tallies_of(device).address(tallies_of(device).new())
    call = planned.Planned(run, setting, dim**-0.5, q, pages, table, out)
    paged = [Paged(x, table) for x in pages]
    rows_first = [x.flatten(0, 1).transpose(0, 1)[None] for x in pages]

    def unplanned():
        served.attend(q, *paged, out, dim**-0.5, {}, run.q_offsets, run.k_offsets)

    def one_call():
        call(q, pages, out, tally)
        served.report.count_tallied(call.counts)

    def torchs():
        torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None], *rows_first, is_causal=True, enable_gqa=True
        )

    made_of = {"planned": one_call, "not planned": unplanned, "torch's attention": torchs}
    times = {name: ([], []) for name in made_of}
    for _ in range(30):
        for name, function in made_of.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(layers):
                function()
            times[name][0].append((time.perf_counter() - start) / layers)
            torch.cuda.synchronize()
            times[name][1].append((time.perf_counter() - start) / layers)
    print(f"{torch.cuda.get_device_name()}, a layer of {rows} rows, {heads}/{kv_heads} heads:")
    for name, (host, both) in times.items():
        print(
            f"{name}: host {statistics.median(host[5:]) * 1e6:.1f} us, until the GPU is done "
            f"{statistics.median(both[5:]) * 1e6:.1f} us"
        )


def main():
    if sys.argv[1:] == ["--cuda"]:
        for rows in (4096, 16384):
            on_gpu(rows)
        return
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
    with torch.no_grad():
        for length in (1, 4, 16, 64):
            stock, ours = attention_alone(model.config, length)
            print(
                f"{length:3d} tokens on 1,024, attention alone: stock {stock * 1e6:.0f} us, "
                f"ours {ours * 1e6:.0f} us"
            )
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
