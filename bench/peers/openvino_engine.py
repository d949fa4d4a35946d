#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time to the first token in OpenVINO GenAI on the CPU, and the answer, as one JSON object.

usage: openvino_engine.py MODEL.gguf PROMPT.json THREADS ANSWER_TOKENS dense|xattention
Run by whole_model.py in the environment of `bench/peers/install openvino`. The model is Q8_0, the
one quantised GGUF type that it reads; XAttention has its default threshold and block size.
"""
import json
import os
import sys

model, prompt_path, mode = sys.argv[1], sys.argv[2], sys.argv[5]
threads, answer_tokens = map(int, sys.argv[3:5])
os.environ["INFERENCE_NUM_THREADS"] = str(threads)
results = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
import openvino_genai as genai  # noqa: E402


def scheduler():
    config = genai.SchedulerConfig()
    config.max_num_batched_tokens = 2048
    config.enable_prefix_caching = False
    config.cache_size = 2
    if mode == "xattention":
        config.use_sparse_attention = True
        config.sparse_attention_config = genai.SparseAttentionConfig(
            mode=genai.SparseAttentionMode.XATTENTION
        )
    return config


def tokenised(ids):
    row = np.array([ids], dtype=np.int64)
    return genai.TokenizedInputs(ov.Tensor(row), ov.Tensor(np.ones_like(row)))


with open(prompt_path) as file:
    prompt_ids = json.load(file)["ids"]
pipeline = genai.LLMPipeline(
    model, "CPU", scheduler_config=scheduler(), INFERENCE_NUM_THREADS=threads
)
generation = genai.GenerationConfig()
generation.max_new_tokens = 2
generation.do_sample = False
pipeline.generate(tokenised(prompt_ids[:256]), generation)  # warm-up
generation.max_new_tokens = answer_tokens
result = pipeline.generate(tokenised(prompt_ids), generation)
answer = pipeline.get_tokenizer().decode(result.tokens[0])
row = {
    "ttft_s": result.perf_metrics.get_ttft().mean / 1e3,
    "answer": answer,
    "prompt_tokens": len(prompt_ids),
    "version": genai.__version__,
}
print(json.dumps(row), file=results, flush=True)
