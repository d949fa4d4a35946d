# SPDX-License-Identifier: MIT
"""`vllm serve` of vllm_cuda.py with 64 requests at once: called by it with what it wants as JSON."""

import concurrent.futures
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from vllm_engines import have_cards_alone, is_stock, prompt_of, variables_of

LONGEST = 12288  # every eighth request: long enough to be sparse
NEW_TOKENS = 8


def fetch(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def wait_for(server, url):
    while True:
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}")
        try:
            return fetch(url)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)


def counters(url):
    """Our lines of /metrics, once rows have been counted and nothing changes any more."""
    before = None
    for _ in range(15):
        time.sleep(1.0)
        lines = [line for line in fetch(url).splitlines() if line.startswith("tokensparse_")]
        found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
        if found and found == before:
            break
        before = found
    return before


def main():
    asked = json.loads(sys.argv[1])
    [mode] = asked["modes"]
    port = asked["port"] + is_stock(mode)  # both may run at once

    def say(**what):
        with open(asked["said"], "a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")
        print("\n" + json.dumps(what), flush=True)

    vocabulary = json.loads(Path(asked["folder"], "config.json").read_text())["vocab_size"]
    prompt = prompt_of({**asked, "tokens": [LONGEST]}, vocabulary)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", asked["folder"]]
    command += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "bfloat16", "--max-model-len", "16384"]
    command += ["--gpu-memory-utilization", str(asked["memory"])]
    if asked["cache_gib"]:
        command += ["--kv-cache-memory-bytes", str(int(asked["cache_gib"] * 2**30))]
    command += ["--attention-backend", "FLASH_ATTN" if is_stock(mode) else "CUSTOM"]
    command += ["--tensor-parallel-size", str(asked["tensor_parallel"])]
    if asked["model"] == "random":
        command += ["--load-format", "dummy"]
    if asked["eager"]:
        command.append("--enforce-eager")
    start, cards = time.time(), []
    server = subprocess.Popen(command, env={**os.environ, **variables_of(mode, asked)})
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for(server, f"{base}/health")
        say(mode=mode, server_up_seconds=round(time.time() - start, 1), command=" ".join(command[3:]))

        def ask(tokens):
            body = {"model": "m", "prompt": tokens, "max_tokens": NEW_TOKENS, "temperature": 0,
                    "ignore_eos": True}
            began = time.perf_counter()
            found = json.loads(fetch(f"{base}/v1/completions", body))
            return found["choices"][0]["text"], time.perf_counter() - began

        lengths = [LONGEST if i % 8 == 7 else 256 + i * 61 for i in range(64)]
        requests = [[300 + i, *prompt[1:length]] for i, length in enumerate(lengths)]
        cards = have_cards_alone(asked)
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            list(pool.map(ask, [[17 + i, *prompt[1:5000]] for i in range(8)]))
            began = time.perf_counter()
            answers = list(pool.map(ask, requests))
            seconds = time.perf_counter() - began
        say(
            mode=mode,
            batch="64 requests over HTTP",
            seconds=round(seconds, 4),
            prompt_tokens=sum(lengths),
            answered=len(answers),
            slowest_seconds=round(max(took for _, took in answers), 4),
            answers=[text.replace("w", " w").split() for text, _ in answers],
        )
        if not is_stock(mode):
            say(mode=mode, metrics=counters(f"{base}/metrics"))
    finally:
        server.terminate()
        server.wait(30)
        del cards


if __name__ == "__main__":
    main()
