# SPDX-License-Identifier: MIT
"""A whole vLLM engine on CUDA: its own kernel, ours exact, ours sparse, one engine after the other.

usage: vllm_cuda.py MODEL [--tokens 4096 16384 32768] [--setting FILE | --keep SHARE] [--json FILE] ...
MODEL is a folder, or `random` for Qwen2.5-1.5B's shape with random weights: right for times, since
--keep says how many tokens stay, and for comparing exact tokens, but not for what a vote keeps.
vLLM's defaults are left alone: compiled, CUDA graphs, chunked prefill, prefix cache. Measured are the
time to first token by length, a batch of 64 requests and memory; compared with the first engine are
greedy tokens of prompts, of a mixed batch, and of that batch again from the prefix cache.
Each engine has a process of its own. A line of JSON for each thing measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QWEN_15B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
REPEATS = 5
NEW_TOKENS = 12


def say(found, **what):
    found.append(what)
    print("\n" + json.dumps(what), flush=True)


def environment_of(mode, options):
    """TOKENSPARSE_* of a mode, and the backend."""
    for name in [n for n in os.environ if n.startswith("TOKENSPARSE_")]:
        if name != "TOKENSPARSE_LIBRARY":
            del os.environ[name]
    if mode == "sparse":
        os.environ["TOKENSPARSE_SETTING"] = options.setting
        if options.keep:
            os.environ["TOKENSPARSE_KEEP"] = str(options.keep)
    return "FLASH_ATTN" if mode.startswith("stock") else "CUSTOM"


def prompts_of(options, vocabulary):
    """One prompt of the longest length; shorter ones are its beginnings."""
    import torch

    longest = max(options.tokens)
    if not options.text:
        made = torch.Generator().manual_seed(7)
        return torch.randint(100, vocabulary - 100, (longest,), generator=made).tolist()
    import transformers

    text = Path(options.text).read_text(encoding="utf-8")
    ids = transformers.AutoTokenizer.from_pretrained(options.model)(text).input_ids
    return (ids * (longest // len(ids) + 1))[:longest]


class Engine:
    """One mode's."""

    def __init__(self, mode, folder, options):
        import vllm

        import tokensparse.vllm

        tokensparse.vllm.register()  # installed, the package does it by itself
        backend = environment_of(mode, options)
        more = {"load_format": "dummy"} if options.model == "random" else {}
        if options.eager:
            more["enforce_eager"] = True
        start = time.time()
        self.llm = vllm.LLM(
            model=folder,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=max(options.tokens) + 64,
            gpu_memory_utilization=options.memory,
            attention_backend=backend,
            seed=0,
            **more,
        )
        self.start_seconds = round(time.time() - start, 1)
        self.vllm = vllm
        config = self.llm.llm_engine.vllm_config
        self.about = {
            "vllm": vllm.__version__,
            "chunk": config.scheduler_config.max_num_batched_tokens,
            "cudagraphs": str(config.compilation_config.cudagraph_mode),
            "cache_blocks": config.cache_config.num_gpu_blocks,
        }

    def answer(self, prompts, new):
        """Token lists, and the seconds they took."""
        import torch

        sampling = self.vllm.SamplingParams(
            max_tokens=new, temperature=0, detokenize=False, ignore_eos=True
        )
        torch.cuda.synchronize()
        start = time.perf_counter()
        done = self.llm.generate(
            [{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False
        )
        torch.cuda.synchronize()
        return [list(d.outputs[0].token_ids) for d in done], time.perf_counter() - start


def measure(mode, folder, options, prompt):
    """Everything of one engine."""
    import torch

    from tokensparse.vllm import report

    found, tokens, medians = [], {}, {}
    engine = Engine(mode, folder, options)
    say(found, mode=mode, start_seconds=engine.start_seconds, **engine.about)
    engine.answer([prompt[: min(options.tokens)]], 1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    turn = 0
    for length in options.tokens:
        times = []
        for _ in range(options.repeat + 1):
            turn += 1  # another first token each time: nothing comes from the prefix cache
            times.append(engine.answer([[200 + turn, *prompt[1:length]]], 1)[1])
        told = report(reset=True)
        medians[str(length)] = statistics.median(times[1:])
        say(found, mode=mode, tokens=length, first_token_ms=round(1e3 * medians[str(length)], 2),
            all_ms=[round(1e3 * t, 2) for t in times], kept_share=told.kept_share,
            pairs_share=told.pairs_share, served=sum(r.served for r in told),
            stock=[sum(r.stock.values()) for r in told][:3])
    say(found, mode=mode, extra_peak_mib=(torch.cuda.max_memory_allocated() - before) >> 20)
    compared = [n for n in options.tokens if n <= 40000]
    longest = max(compared)
    batches = {str(n): [prompt[:n]] for n in compared}
    batches["mixed"] = [prompt[:n] for n in (7, 65, 300, 64, 1200, longest // 2, 33)]
    batches["mixed, from the prefix cache"] = batches["mixed"]
    for name, batch in batches.items():
        tokens[name], seconds = engine.answer(batch, NEW_TOKENS)
        say(found, mode=mode, batch=name, seconds=round(seconds, 4), first=tokens[name][0][:4])
    many = [[300 + i, *prompt[1 : 256 + i * 61]] for i in range(64)]  # 256 to 4,100 tokens
    tokens["64 requests"], seconds = engine.answer(many, NEW_TOKENS)
    say(found, mode=mode, batch="64 requests", seconds=round(seconds, 4),
        prompt_tokens=sum(map(len, many)))
    return {"tokens": tokens, "medians": medians, "records": found,
            "card": torch.cuda.get_device_name(), "torch": torch.__version__}


def agreement(ours, theirs):
    """Tokens until the first difference of each answer, over all."""
    same = 0
    for a, b in zip(ours, theirs):
        same += next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(a))
    return f"{same}/{sum(map(len, theirs))}"


def compare(records, mode, found, first, stock):
    """Tokens and times of a mode against those of the first one."""
    for name, answers in found["tokens"].items():
        say(records, mode=mode, against=first, batch=name,
            same_tokens=agreement(answers, stock["tokens"][name]))
    for length, median in found["medians"].items():
        say(records, mode=mode, against=first, tokens=int(length),
            speedup=round(stock["medians"][length] / median, 3))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--modes", nargs="+", default=["stock", "exact", "sparse", "stock again"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384, 32768, 131072])
    parser.add_argument("--repeat", type=int, default=REPEATS)
    parser.add_argument("--setting", default="built-in", help="of the sparse mode")
    parser.add_argument("--keep", type=float, help="keep this share instead of the setting's coverage")
    parser.add_argument("--text", help="file to take the prompt from; needs the model's tokenizer")
    parser.add_argument("--memory", type=float, default=0.4, help="gpu_memory_utilization")
    parser.add_argument("--eager", action="store_true", help="no compilation, no CUDA graphs")
    parser.add_argument("--json", help="file to keep the figures in")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # reports are of this process
    if options.child:
        folder, mode, answer = json.loads(options.child)
        vocabulary = json.loads(Path(folder, "config.json").read_text())["vocab_size"]
        found = measure(mode, folder, options, prompts_of(options, vocabulary))
        Path(answer).write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as made:
        folder, answer = options.model, str(Path(made, "answer.json"))
        if folder == "random":
            folder = made
            config = {**QWEN_15B, "max_position_embeddings": max(options.tokens) + 64}
            Path(made, "config.json").write_text(json.dumps(config))
        records, engines = [], {}
        first = options.modes[0]
        for mode in options.modes:
            child = json.dumps([folder, mode, answer])
            command = [sys.executable, __file__, *sys.argv[1:], "--child", child]
            subprocess.run(command, check=True)
            found = engines[mode] = json.loads(Path(answer).read_text())
            records += found["records"]
            if mode != first:
                compare(records, mode, found, first, engines[first])
            if options.json:
                about = {key: found[key] for key in ("card", "torch")}
                about.update(model=options.model, keep=options.keep, setting=options.setting)
                Path(options.json).write_text(json.dumps({**about, "records": records}, indent=1))


if __name__ == "__main__":
    main()
