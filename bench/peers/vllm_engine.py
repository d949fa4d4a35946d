#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time to the first token in vLLM on the CPU, bf16, and the answer, as one JSON object.

usage: vllm_engine.py MODEL_FOLDER PROMPT.json THREADS ANSWER_TOKENS
Run by whole_model.py in the environment of `bench/peers/install vllm`.
"""
import json
import os
import sys
import time

folder, prompt_path, threads, answer_tokens = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])
os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS=str(threads),
    VLLM_CPU_KVCACHE_SPACE="2",
    VLLM_CPU_NUM_OF_RESERVED_CPU="0",
    VLLM_CPU_OMP_THREADS_BIND=f"0-{threads - 1}",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
)
results = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # vLLM writes to stdout
from vllm import LLM, SamplingParams  # noqa: E402
from vllm import __version__ as version  # noqa: E402


def run(engine, name, ids, count):
    """Seconds until the first token is there, and the answer."""
    params = SamplingParams(max_tokens=count, temperature=0)
    start, first, text = time.perf_counter(), None, ""
    engine.add_request(name, {"prompt_token_ids": ids}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if first is None and output.outputs[0].token_ids:
                first = time.perf_counter() - start
            text = output.outputs[0].text
    return first, text


if __name__ == "__main__":
    with open(prompt_path) as file:
        ids = json.load(file)["ids"]
    llm = LLM(
        model=folder,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=len(ids) + answer_tokens + 8,
        max_num_batched_tokens=2048,
        max_num_seqs=1,
        enable_prefix_caching=False,
    )
    run(llm.llm_engine, "warm-up", ids[:256], 2)
    ttft, answer = run(llm.llm_engine, "prompt", ids, answer_tokens)
    row = {"ttft_s": ttft, "answer": answer, "prompt_tokens": len(ids), "version": version}
    print(json.dumps(row), file=results, flush=True)
