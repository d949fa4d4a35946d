# SPDX-License-Identifier: MIT
"""Where choosing tokens begins to pay (src/cuda/prefill_cost.h): exact attention beside prefill with a
quarter kept per KV group and left-out rows local, of whole prompts and of chunks of 8,192 tokens."""
import argparse
import json

import torch
from compare import Device, Ours, load_package, workload
from measure import in_turn

SHAPES = ((32, 8, 128), (28, 4, 128), (12, 2, 128), (32, 8, 64), (14, 2, 64))
CHUNKED = 8192


def chunk(ctx, ours, q, k, v, rows):
    q = q[-rows:].contiguous()
    qkv = dict(q=q, k=k, v=v, out=torch.empty_like(q))
    return {"dense": ctx.prepare("attend", **qkv),
            "prefill": ctx.prepare("prefill", share=ctx.library.SHARES["kv_group"], min_tokens=512,
                                   coverage=ours.coverage, dropped=1, sink=64, band=256, **qkv)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", default="build/cuda/src/libtokensparse.so")
    parser.add_argument("--tokens", nargs="+", type=int,
                        default=[2048, 3072, 4096, 5120, 6144, 8192, 10240])
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.cuda.set_stream(torch.cuda.Stream())
    ctx = Device(load_package(args.library))
    cases = []
    for heads, kv_heads, dim in SHAPES:
        for tokens in args.tokens:
            q, k, v = workload(tokens, heads, kv_heads, dim, torch.bfloat16)
            ours = Ours(ctx, q, k, v, "kv_group", 0.25, local=True)
            runs = {tokens: {"dense": ours.attend_dense, "prefill": ours.prefill}}
            if tokens == CHUNKED:
                runs |= {rows: chunk(ctx, ours, q, k, v, rows) for rows in (512, 1024, 2048, 4096)}
            for rows, calls in runs.items():
                times = in_turn(calls, 9)
                case = {"heads": [heads, kv_heads], "dim": dim, "keys": tokens, "queries": rows,
                        **{f"{label}_ms": round(entry["ms"], 4) for label, entry in times.items()}}
                print(case, flush=True)
                cases.append(case)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"card": torch.cuda.get_device_name(), "torch": torch.__version__, "keep": 0.25,
                       "share": "kv_group", "sink": 64, "band": 256, "cases": cases}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
