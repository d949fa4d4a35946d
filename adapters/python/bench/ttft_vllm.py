# SPDX-License-Identifier: MIT
"""Time to first token in vLLM on the CPU: the stock kernel, ours exact, ours sparse.

usage: ttft_vllm.py MODEL --mode stock|exact|sparse --tokens 4096 8192 [--repeat 2]
One engine a process, since the plugin is chosen at its start: run the three modes one after the
other. MODEL is a folder. One line of JSON a length.
"""

import argparse
import json
import os
import statistics
import time

MODES = {
    "stock": {"TOKENSPARSE_DISABLE": "1"},
    "exact": {},
    "sparse": {
        "TOKENSPARSE_COVERAGE": "0.01",
        "TOKENSPARSE_SHARE": "kv_group",
        "TOKENSPARSE_SPARSE_LAYERS": "7-15,18,21-22",
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--text", required=True, help="file to take the prompts from")
    options = parser.parse_args()
    os.environ.update(MODES[options.mode])
    import transformers
    import vllm

    import tokensparse.vllm

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    with open(options.text, encoding="utf-8") as file:
        tokens = tokenizer(file.read()).input_ids
    engine = vllm.LLM(
        model=options.model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype=options.dtype,
        max_model_len=max(options.tokens) + 64,
        max_num_batched_tokens=2048,
        max_num_seqs=4,
        enable_prefix_caching=False,
    )
    sampling = vllm.SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    engine.generate([{"prompt_token_ids": tokens[:1024]}], sampling, use_tqdm=False)  # warm-up
    tokensparse.vllm.report(reset=True)
    for length in options.tokens:
        times = []
        for _ in range(options.repeat):
            start = time.perf_counter()
            prompt = [{"prompt_token_ids": tokens[:length]}]
            engine.generate(prompt, sampling, use_tqdm=False)
            times.append(time.perf_counter() - start)
        report = tokensparse.vllm.report(reset=True)
        result = {
            "mode": options.mode,
            "tokens": length,
            "dtype": options.dtype,
            "seconds": round(statistics.median(times), 3),
            "all": [round(t, 3) for t in times],
            "kept_share": report.kept_share,
        }
        print("\n" + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
