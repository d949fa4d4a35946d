#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time to the first token in every host of tokensparse on the CPU: stock, ours exact, ours sparse.

usage: bench/hosts.py [--tokens 8192,...] [--hosts LIST] [--modes LIST] [--repeat N] [--json FILE]
       bench/hosts.py --cpu-time --hosts program,llama-bench ...    on a machine that others use:
                              exact and sparse alone, processor time of one thread, start included
The same setting everywhere, the built-in one. Hosts: program (stock is `run --compare`'s), llama-bench
(random tokens), llama-server, transformers, vllm. Modes take turns, in one process but for
llama.cpp's programs; medians, of the samples that FILE has, too. llama.cpp's programs come from
`scripts/plugin-check`, the environments of transformers and vLLM from `scripts/test-python`, which work
with this build's library and torch operators (-DTOKENSPARSE_TORCH=ON); a host that cannot be had is
skipped with a line.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "bench" / "peers")]
sys.dont_write_bytecode = True
import plugin_server  # noqa: E402
import whole_model  # noqa: E402

CACHE = whole_model.cache_folder()
BUILD = ROOT / "build" / "release"
MODES = ("stock", "exact", "sparse")
PLUGIN = {
    "GGML_BACKEND_PATH": str(BUILD / "lib" / "libggml-tokensparse.so"),
    "LLAMA_ARG_OVERRIDE_TENSOR": "^$=CPU",
    "TOKENSPARSE_LINEAR": "auto",
}
# Mode: environment, and what a user would give the host for it: stock at its best chunk.
LLAMA = {
    "stock": ({}, {"-ub": "512"}),
    "exact": (PLUGIN, {"-ub": "2048"}),
    "sparse": ({**PLUGIN, "TOKENSPARSE_SETTING": "built-in"}, {"-ub": "2048"}),
}


def clean_environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TOKENSPARSE_", "GGML_"))}
    return {**kept, **more}


def output_of(command, environment):
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or ["no message"])[-1]
        raise whole_model.Skip(f"{command[0]}: {last.strip()}")
    return done.stdout


def timed(options, command, environment, reported):
    """Seconds of each mode of a run: what it reports, or all the processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(output_of(command, environment))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [taken] if options.cpu_time else reported(found)


def program(options, lengths):
    """Seconds by length and mode."""
    text = options.prompt["text"]
    per_token = len(text) / len(options.prompt["ids"])
    path = CACHE / f"hosts-prompt-{os.getpid()}.txt"
    alone = {"exact": ["--coverage", "0"], "sparse": ["--setting", "built-in"]}
    runs = {mode: ([mode], more) for mode, more in alone.items() if mode in options.modes}
    if "stock" in options.modes:  # one run has all three
        runs = {"all": (options.modes, ["--setting", "built-in", "--compare"])}
    for tokens in lengths:
        path.write_text(text[: int(tokens * per_token)])
        times = {mode: [] for mode in options.modes}
        for _ in range(options.repeat):
            for modes, more in runs.values():
                command = [BUILD / "bin" / "tokensparse", "run", "-m", options.model, "-f", path]
                command += ["-p", "What is this?", "-n", "1", "--json", *more]
                command += ["--threads", options.threads]
                found = timed(
                    options, command, clean_environment(),
                    lambda found: [found[mode]["ttft_s"] for mode in modes],  # noqa: B023
                )  # fmt: skip
                for mode, seconds in zip(modes, found):
                    times[mode].append(seconds)
        yield tokens, times
    path.unlink()


def llama_bench(options, lengths):
    modes = {mode: LLAMA[mode] for mode in options.modes}
    for tokens in lengths:
        times = {mode: [] for mode in modes}
        for _ in range(options.repeat):
            for mode, (environment, given) in modes.items():
                command = [CACHE / "build-llama-tools" / "bin" / "llama-bench", "-m", options.model]
                rounds = 1 if options.cpu_time else 1 + 1024 // tokens  # as in ttft_*.py
                command += ["-p", tokens, "-n", "0", "-r", rounds, "-o", "json"]
                command += ["--no-warmup"] if tokens > 2048 else []
                command += ["-t", options.threads, "-fa", "1"]
                command += [word for pair in given.items() for word in pair]
                command += [] if mode == "stock" else ["--repack", "0"]
                times[mode] += timed(
                    options,
                    command,
                    clean_environment(**environment),
                    lambda found: [statistics.median(found[0]["samples_ns"]) / 1e9],
                )
        yield tokens, times


def ask(port, ids):
    body = {"prompt": ids, "n_predict": 1, "temperature": 0, "cache_prompt": False}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=1200) as answer:
        return json.loads(answer.read())["timings"]["prompt_ms"] / 1e3


def llama_server(options, lengths):
    """A server for each mode, all lengths in it."""
    times = {tokens: {mode: [] for mode in options.modes} for tokens in lengths}
    for mode in options.modes:
        environment, given = LLAMA[mode]
        more = ["-c", str(max(lengths) + 64), "-fa", "on"]
        more += [word for pair in given.items() for word in pair]
        more += [] if mode == "stock" else ["--no-repack"]
        with plugin_server.Server(
            CACHE / "build-llama-tools" / "bin" / "llama-server", options.model,
            clean_environment(**environment), str(options.threads), slots=1, options=more,
        ) as server:  # fmt: skip
            for tokens in lengths:
                for _ in range(options.repeat):
                    times[tokens][mode].append(ask(server.port, options.prompt["ids"][:tokens]))
    yield from times.items()


def python_host(options, lengths, script, pattern):
    pythons = sorted(CACHE.glob(f"{pattern}/bin/python"), key=lambda p: p.parent.stat().st_mtime)
    if not pythons:
        raise whole_model.Skip(f"no environment {CACHE}/{pattern}")
    # With threads of its own the library waits for torch's, which spin for a while after each operation.
    if not (BUILD / "src" / "libtokensparse_torch.so").exists():
        raise whole_model.Skip(f"{BUILD} was configured without -DTOKENSPARSE_TORCH=ON")
    environment = clean_environment(
        PYTHONPATH=str(ROOT / "adapters" / "python" / "src"),
        TOKENSPARSE_LIBRARY=str(BUILD / "src" / "libtokensparse.so"),
        OMP_NUM_THREADS=str(options.threads),
    )
    command = [pythons[-1], ROOT / "adapters" / "python" / "bench" / script, options.folder]
    command += ["--tokens", *lengths, "--repeat", options.repeat, "--modes", *options.modes]
    command += ["--text", options.folder / "haystack.txt"]
    with subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:  # a length's row as soon as it is there
            if line.startswith("{"):
                row = json.loads(line)
                yield row["tokens"], row["all_seconds"]
    if process.returncode != 0:
        raise whole_model.Skip(f"{script} ended with {process.returncode}")


def transformers(options, lengths):
    return python_host(options, lengths, "ttft_transformers.py", "python-transformers-*")


def vllm(options, lengths):
    return python_host(options, lengths, "ttft_vllm.py", "python-vllm-[0-9a-f]*")


HOSTS = {
    "program": program,
    "llama-bench": llama_bench,
    "llama-server": llama_server,
    "transformers": transformers,
    "vllm": vllm,
}


def add_row(rows, host, tokens, times):
    """Samples of a row that is there stay beside the new ones."""
    found = [row for row in rows if (row["host"], row["tokens"]) == (host, tokens)]
    row = found[0] if found else {"host": host, "tokens": tokens, "all_seconds": {}}
    for mode in MODES:
        if samples := row["all_seconds"].pop(mode, []) + times.get(mode, []):
            row["all_seconds"][mode] = samples
    row["seconds"] = {mode: statistics.median(of) for mode, of in row["all_seconds"].items()}
    row["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    rows += [] if found else [row]
    return row


def print_row(row):
    seconds = row["seconds"]
    words = [f"{mode} {value:7.3f} s" for mode, value in seconds.items()]
    for mode, other in (("sparse", "exact"), ("exact", "stock"), ("sparse", "stock")):
        if mode in seconds and other in seconds:
            words.append(f"{mode} over {other} {seconds[mode] / seconds[other]:.3f}")
    print(f"{row['host']:<13} {row['tokens']:>6}  " + "  ".join(words), flush=True)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", default="8192", help="prompt lengths; program: about")
    parser.add_argument("--hosts", default=",".join(HOSTS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cpu-time", action="store_true", help="see above")
    parser.add_argument("--json", type=pathlib.Path, help="rows are added")
    options = parser.parse_args()
    options.lengths = [int(word) for word in options.tokens.split(",")]
    for host in options.hosts.split(","):
        if host not in HOSTS:
            parser.error(f"--hosts: must be of {', '.join(HOSTS)}, got {host}")
        if options.cpu_time and host not in ("program", "llama-bench"):
            parser.error(f"--cpu-time: of program and llama-bench alone, got --hosts {host}")
    options.modes = options.modes.split(",")
    for mode in options.modes:
        if mode not in MODES:
            parser.error(f"--modes: must be of {', '.join(MODES)}, got {mode}")
    if options.cpu_time:
        options.threads = 1
        options.modes = [mode for mode in options.modes if mode != "stock"]
    options.model = pathlib.Path(whole_model.output_of([ROOT / "scripts/fetch-model"], "").strip())
    options.folder = CACHE / "peer-models" / options.model.name.removesuffix(".gguf")
    longest = max(options.lengths)
    prompts = {int(path.name.split("-")[1]): path for path in options.folder.glob("prompt-*-0-*.json")}
    long_enough = [tokens for tokens in prompts if tokens >= longest]
    if not long_enough:
        prepare = f"bench/peers/whole_model.py --prepare-only --tokens {max(8192, longest)} --out /dev/null"
        parser.error(f"no prompt of {longest} tokens: run {prepare} first")
    options.prompt = json.loads(prompts[min(long_enough)].read_text())
    return options


def main():
    options = parse_options()
    rows = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text())["rows"]
    for host in options.hosts.split(","):
        try:
            for tokens, times in HOSTS[host](options, options.lengths):
                print_row(add_row(rows, host, tokens, times))
                save(options, rows)
        except (whole_model.Skip, OSError) as reason:
            print(f"{host}: left out: {reason}", file=sys.stderr, flush=True)


def save(options, rows):
    if options.json:
        machine = {"processor": whole_model.processor(), "threads": options.threads}
        document = {"machine": machine, "model": options.model.name, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
