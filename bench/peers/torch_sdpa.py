#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times torch's scaled_dot_product_attention, dense and causal, and prints one JSON object.

usage: torch_sdpa.py TOKENS HEADS KV_HEADS DIM f32|bf16 THREADS REPEAT MAX_TIME
`tokensparse bench --peer torch` runs it with the Python that TOKENSPARSE_PEER_PYTHON names. K and V
are repeated for the query heads before the clock starts, a present to torch: its own way with
grouped heads is never faster. Samples stop at REPEAT, or after MAX_TIME seconds and three of them.
"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as functional

tokens, heads, kv_heads, dim = map(int, sys.argv[1:5])
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[5]]
threads, repeat, max_time = int(sys.argv[6]), int(sys.argv[7]), float(sys.argv[8])

torch.set_num_threads(threads)
torch.manual_seed(0)


def random_heads(count):
    return torch.randn(1, count, tokens, dim).to(dtype)


q = random_heads(heads)
k, v = (random_heads(kv_heads).repeat_interleave(heads // kv_heads, 1) for _ in "kv")

samples = []
with torch.inference_mode():
    functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # warm-up
    while len(samples) < 3 or (len(samples) < repeat and sum(samples) < max_time):
        start = time.perf_counter()
        functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        samples.append(time.perf_counter() - start)

quarter = statistics.quantiles(samples, n=4, method="inclusive")
print(
    json.dumps(
        {
            "median_s": quarter[1],
            "spread": {
                "min": min(samples),
                "p25": quarter[0],
                "p75": quarter[2],
                "max": max(samples),
                "samples": len(samples),
            },
            "version": torch.__version__,
            "dtype": sys.argv[5],
        }
    )
)
