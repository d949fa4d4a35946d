#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Answers the questions of lab.engines.openvino_engine, a JSON line each; needs OpenVINO GenAI alone.

usage: openvino_worker.py MODEL.gguf dense|xattention THREADS
"""
import json
import os
import sys

weights, mode, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
results = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # its own words do not belong among the answers
import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
import openvino_genai as genai  # noqa: E402

scheduler = genai.SchedulerConfig()
scheduler.max_num_batched_tokens = 2048
scheduler.enable_prefix_caching = False
scheduler.cache_size = 2
if mode == "xattention":  # its own threshold, stride and block size
    scheduler.use_sparse_attention = True
    scheduler.sparse_attention_config = genai.SparseAttentionConfig(
        mode=genai.SparseAttentionMode.XATTENTION
    )
pipeline = genai.LLMPipeline(
    weights, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
)
generation = genai.GenerationConfig()
generation.do_sample = False
for line in sys.stdin:
    asked = json.loads(line)
    row = np.array([asked["tokens"]], dtype=np.int64)
    generation.max_new_tokens = asked["max_tokens"]
    inputs = genai.TokenizedInputs(ov.Tensor(row), ov.Tensor(np.ones_like(row)))
    got = pipeline.generate(inputs, generation)
    tokens, wanted = list(got.tokens[0]), asked["answer_tokens"]
    answer = {
        "loss": None,
        "exact": tokens[: len(wanted)] == wanted,
        "seconds": got.perf_metrics.get_ttft().mean / 1e3,
        "pairs": None,
        "kept": None,
        "answer": pipeline.get_tokenizer().decode(tokens),
    }
    print(json.dumps(answer), file=results, flush=True)
