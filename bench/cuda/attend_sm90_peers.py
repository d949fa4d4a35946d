# SPDX-License-Identifier: MIT
"""The warpgroup attention kernel beside FlashAttention-3 and cuDNN (through torch): dense causal
bf16, the same tensors, in turns. Every timed run follows an untimed one of the same kernel: at these
lengths the card is at its power limit, and a kernel inherits the clock that the one before it left.

usage: attend_sm90_peers.py ATTEND_SM90.so FA3.so [--lengths 8192,...] [--dim 128] [--json FILE]
       (- for FA3.so leaves it out)"""
import argparse
import ctypes
import json
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def pointers(*tensors):
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ours")
    parser.add_argument("fa3")
    parser.add_argument("--lengths", default="8192,16384,32768,65536,131072")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--json")
    args = parser.parse_args()
    heads, kv_heads, dim = args.heads, args.kv_heads, args.dim
    ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    ours = ctypes.CDLL(args.ours)
    fa3 = None if args.fa3 == "-" or dim != 128 else ctypes.CDLL(args.fa3)
    card = torch.cuda.get_device_properties(0)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    results = []
    for length in (int(x) for x in args.lengths.split(",")):
        torch.manual_seed(length)

        def rand(n):
            return torch.randn(length, n, dim, device="cuda", dtype=torch.bfloat16)

        q, k, v = rand(heads), rand(kv_heads), rand(kv_heads)
        out, lse = torch.empty_like(q), torch.empty(length, heads, device="cuda")
        out3, lse3 = torch.empty_like(q), torch.empty(heads, length, device="cuda")
        tickets = torch.zeros(2, device="cuda", dtype=torch.int32)
        ticket3 = torch.zeros(2, device="cuda", dtype=torch.int32)

        def run_ours():
            if ours.attend_sm90(*pointers(q, k, v, out, lse, tickets), length, heads, kv_heads, dim,
                                1, card.multi_processor_count, stream):
                raise RuntimeError("attend_sm90 failed")
            return out

        def run_fa3():
            if fa3.fa3_attend(*pointers(q, k, v, out3, lse3, ticket3), length, heads, kv_heads,
                              ctypes.c_float(dim**-0.5), card.multi_processor_count, stream):
                raise RuntimeError("fa3_attend failed")
            return out3

        batch = [t.transpose(0, 1)[None] for t in (q, k, v)]

        def run_cudnn():
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(*batch, is_causal=True, enable_gqa=True)

        runs = {"attend_sm90": run_ours, "FlashAttention-3": run_fa3, "cuDNN": run_cudnn}
        if fa3 is None:
            del runs["FlashAttention-3"]
        want = run_cudnn()[0].transpose(0, 1).float()
        got = run_ours().float()
        error = ((got - want).norm() / want.norm()).item()
        if not error < 5e-3:
            raise RuntimeError(f"{length} tokens: differs from cuDNN by {error}")
        del want, got
        times = {name: [] for name in runs}
        for _ in range(max(5, min(30, 500000 // length))):
            for name, run in runs.items():
                start, end = torch.cuda.Event(True), torch.cuda.Event(True)
                run()
                start.record()
                run()
                end.record()
                end.synchronize()
                times[name].append(start.elapsed_time(end))
        for name, ms in times.items():
            median = statistics.median(ms)
            tflops = 2 * length * length * dim * heads / median * 1e-9
            results.append({"kernel": name, "tokens": length, "heads": [heads, kv_heads],
                            "dim": dim, "ms": median, "min": min(ms), "tflops": tflops,
                            "difference_from_cudnn": error})
            print(f"{length:7d} D {dim} {name:17s} {median:9.3f} ms (least {min(ms):9.3f})"
                  f" {tflops:6.1f} TFLOP/s", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"card": card.name, "torch": torch.__version__,
                       "cudnn": torch.backends.cudnn.version(), "timings": results}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
