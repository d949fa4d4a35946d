# SPDX-License-Identifier: MIT
"""One engine of vllm_cuda.py, in each of its modes: called by it with what it wants as JSON."""

import fcntl
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

NEW_TOKENS = 12
LONG = 65536  # from here on a run takes seconds: fewer of them


def variables_of(mode, asked):
    """TOKENSPARSE_* of a mode."""
    if mode == "sparse":
        return {"TOKENSPARSE_COVERAGE": str(asked["coverage"])}
    if mode == "kept":
        return {"TOKENSPARSE_KEEP": str(asked["keep"])}
    if mode == "blocks":  # of the tokens that sparse keeps
        return {**variables_of("sparse", asked), "TOKENSPARSE_BLOCKS": "xattention"}
    if mode == "full graphs":  # sparse at every length, were it not for the graphs
        return {"TOKENSPARSE_KEEP": str(asked["keep"]), "TOKENSPARSE_MIN_KEYS": "0",
                "TOKENSPARSE_MIN_ROWS": "2"}
    return {}


def without_ours(worker, alone):
    """In a rank: layers and builder are the stock ones alone, in the same engine, or again ours."""
    from tokensparse.vllm import cuda

    for name, ours, theirs in (
        ("forward", cuda.CUDAImpl, cuda.FlashAttentionImpl),
        ("build", cuda.CUDABuilder, cuda.FlashAttentionMetadataBuilder),
    ):
        saved = f"_{name}_of_ours"
        if not hasattr(ours, saved):
            setattr(ours, saved, ours.__dict__[name])
        setattr(ours, name, getattr(theirs, name) if alone else getattr(ours, saved))


def prompt_of(asked, vocabulary):
    """The longest prompt; shorter ones are its beginnings."""
    import torch

    longest = max(asked["tokens"])
    if not asked["text"]:
        made = torch.Generator().manual_seed(7)
        return torch.randint(100, vocabulary - 100, (longest,), generator=made).tolist()
    import transformers

    text = Path(asked["text"]).read_text(encoding="utf-8")
    ids = transformers.AutoTokenizer.from_pretrained(asked["folder"])(text).input_ids
    return (ids * (longest // len(ids) + 1))[:longest]


def is_stock(mode):
    return mode.startswith("stock")


def memory_of(worker, reset=False):
    """MiB that a rank has and had at most."""
    import torch

    found = [torch.cuda.memory_allocated() >> 20, torch.cuda.max_memory_allocated() >> 20]
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return found


def report_of(worker):
    """What happened in a rank since the last time."""
    from tokensparse.vllm import report

    told = report(reset=True)
    return {
        "kept_share": told.kept_share,
        "pairs_share": told.pairs_share,
        "served": sum(layer.served for layer in told),
        "stock": dict(sum((layer.stock for layer in told), start=type(told[0].stock)()))
        if told
        else {},
    }


def have_cards_alone(asked):
    """Parts that run at once measure one after the other on the cards they share. What it returns
    stays open until the process has ended: beside the end of an engine, which takes a second on
    its cards, another's short prompts take up to 1.7 times as long."""
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")
    held = []
    for card in sorted(cards[: asked["tensor_parallel"]]):
        held.append(open(Path(tempfile.gettempdir(), f"tokensparse-vllm-card-{card}.lock"), "w"))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    return held


class Engine:
    """The engine of a part."""

    def __init__(self, asked):
        start = time.time()
        import torch
        import vllm

        import tokensparse.vllm

        tokensparse.vllm.register()
        imported = time.time()
        stock = all(map(is_stock, asked["modes"]))
        os.environ.update(variables_of(asked["modes"][-1], asked))  # room is made for sparse runs
        more = {"load_format": "dummy"} if asked["model"] == "random" else {}
        if asked["eager"]:
            more["enforce_eager"] = True
        if asked["cache_gib"]:
            more["kv_cache_memory_bytes"] = int(asked["cache_gib"] * 2**30)
        if asked["part"] == "graphs":
            more["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL"}
        self.llm = vllm.LLM(
            model=asked["folder"],
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=max(asked["tokens"]) + 64,
            gpu_memory_utilization=asked["memory"],
            attention_backend="FLASH_ATTN" if stock else "CUSTOM",
            tensor_parallel_size=asked["tensor_parallel"],
            seed=0,
            **more,
        )
        self.asked, self.vllm, self.stock = asked, vllm, stock
        config = self.llm.llm_engine.vllm_config
        self.say(
            import_seconds=round(imported - start, 1),
            start_seconds=round(time.time() - imported, 1),
            vllm=vllm.__version__,
            torch=torch.__version__,
            card=torch.cuda.get_device_name(),
            ranks=asked["tensor_parallel"],
            runner=self.llm.collective_rpc(runner_of)[0],
            chunk=config.scheduler_config.max_num_batched_tokens,
            cudagraphs=str(config.compilation_config.cudagraph_mode),
            cache_blocks=config.cache_config.num_gpu_blocks,
        )

    def say(self, **what):
        """A line on the screen, and to the file that the caller reads."""
        with open(self.asked["said"], "a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")
        what.pop("answers", None)
        print("\n" + json.dumps(what), flush=True)

    def configure(self, mode):
        """The mode of what follows; nothing is left of the one before."""
        self.mode = mode
        self.llm.reset_prefix_cache()
        if not self.stock:
            from tokensparse.vllm import worker_configure

            self.llm.collective_rpc(worker_configure, args=(variables_of(mode, self.asked),))

    def answer(self, prompts, new):
        """Token lists, and the seconds they took."""
        sampling = self.vllm.SamplingParams(
            max_tokens=new, temperature=0, detokenize=False, ignore_eos=True
        )
        start = time.perf_counter()
        done = self.llm.generate(
            [{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False
        )
        return [list(d.outputs[0].token_ids) for d in done], time.perf_counter() - start

    def report(self):
        """Of the first rank, and what the ranks kept."""
        if self.stock:
            return {}
        ranks = self.llm.collective_rpc(report_of)
        return {**ranks[0], "kept_of_ranks": [rank["kept_share"] for rank in ranks]}

    def first_tokens(self, prompt):
        """The time to the first token by length."""
        turn = 0
        self.answer([prompt[: min(self.asked["tokens"])]], 1)
        for length in self.asked["tokens"]:
            times = []
            self.report()
            for _ in range(1 + (self.asked["repeat"] if length < LONG else 2)):
                turn += 1  # another first token each time: nothing comes from the prefix cache
                times.append(self.answer([[200 + turn, *prompt[1:length]]], 1)[1])
            self.say(
                mode=self.mode,
                tokens=length,
                first_token_ms=round(1e3 * statistics.median(times[1:]), 2),
                all_ms=[round(1e3 * t, 2) for t in times],
                **self.report(),
            )

    def in_turns(self, prompt):
        """The time to the first token with our layers and with nothing of ours, in one engine."""
        self.answer([prompt[: min(self.asked["tokens"])]], 1)
        turn = 0
        for length in self.asked["tokens"]:
            self.report()
            times = {True: [], False: []}
            for pair in range(2 + 2 * self.asked["repeat"] if length < LONG else 2):
                for alone in (True, False) if pair % 2 else (False, True):
                    turn += 1
                    self.llm.collective_rpc(without_ours, args=(alone,))
                    times[alone].append(self.answer([[1000 + turn, *prompt[1:length]]], 1)[1])
            theirs, ours = (statistics.median(times[alone][1:]) for alone in (True, False))
            self.say(
                mode=self.mode,
                in_turns=length,
                stock_ms=round(1e3 * theirs, 2),
                ours_ms=round(1e3 * ours, 2),
                of_stock=round(theirs / ours, 3),
                all_ms=[[round(1e3 * t, 2) for t in found] for found in times.values()],
                **self.report(),
            )

    def batches(self, prompt):
        """Greedy tokens of prompts, of a mixed batch twice, of 64 requests."""
        compared = [n for n in self.asked["tokens"] if n <= self.asked["compared"]]
        if not compared:
            return
        longest = max(compared)
        found = {str(n): [prompt[:n]] for n in compared}
        found["mixed"] = [prompt[:n] for n in (7, 65, 300, 64, 1200, longest // 2, 33)]
        found["mixed, from the prefix cache"] = found["mixed"]
        found["64 requests"] = [[300 + i, *prompt[1 : 256 + i * 61]] for i in range(64)]
        for name, batch in found.items():
            if "cache" not in name:
                self.llm.reset_prefix_cache()
            answers, seconds = self.answer(batch, NEW_TOKENS)
            self.say(
                mode=self.mode,
                batch=name,
                seconds=round(seconds, 4),
                prompt_tokens=sum(map(len, batch)),
                answers=answers,
                **self.report(),
            )


def runner_of(worker):
    return type(worker.model_runner).__module__


def full_graphs(engine, prompt):
    """Prompts that fit into a captured batch, and one that does not."""
    engine.configure("full graphs")
    for length in (100, 300, 500, 4000):
        engine.report()
        answers, seconds = engine.answer([prompt[:length]], 2)
        engine.say(mode="full graphs", batch=str(length), seconds=seconds, answers=answers,
                   **engine.report())


def main():
    asked = json.loads(sys.argv[1])
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    vocabulary = json.loads(Path(asked["folder"], "config.json").read_text())["vocab_size"]
    prompt = prompt_of(asked, vocabulary)
    engine = Engine(asked)
    engine.cards = have_cards_alone(asked)
    measure(engine, asked, prompt)
    engine.llm.llm_engine.engine_core.shutdown()  # its ranks end before this process does


def measure(engine, asked, prompt):
    """All of the part."""
    if asked["part"] == "graphs":
        full_graphs(engine, prompt)
        return
    if asked["part"] == "turns":
        for mode in asked["modes"]:
            engine.configure(mode)
            engine.in_turns(prompt)
        return
    for mode in asked["modes"]:
        start = time.time()
        engine.configure(mode)
        engine.llm.collective_rpc(memory_of, args=(True,))
        before = engine.llm.collective_rpc(memory_of)[0][0]
        engine.first_tokens(prompt)
        engine.batches(prompt)
        peak = engine.llm.collective_rpc(memory_of)[0][1]
        engine.say(mode=mode, extra_peak_mib=peak - before, mode_seconds=round(time.time() - start, 1))


if __name__ == "__main__":
    main()
