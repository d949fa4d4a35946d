# SPDX-License-Identifier: MIT
"""vLLM on the CPU: its engine and its HTTP server with a tiny random model."""

import concurrent.futures
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("vllm")

from vllm_common import QUIET, SPARSE, engines, model  # noqa: F401  model is a fixture


BLOCKS = "pooled,block=16,threshold=0.3"


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):  # noqa: F811
    """The same prompts through the stock kernel, ours exact, and ours sparse."""
    requests = {
        "stock": ({"TOKENSPARSE_DISABLE": "1"}, {}),
        "exact": ({}, {}),
        "sparse": ({"TOKENSPARSE_COVERAGE": "0.3", **SPARSE}, {}),
        "blocks": ({"TOKENSPARSE_BLOCKS": BLOCKS, "TOKENSPARSE_COVERAGE": "0", **SPARSE}, {}),
    }
    return engines(model, tmp_path_factory, requests)


def test_exact_equals_stock(runs):
    stock, exact = runs["stock"][0], runs["exact"][0]
    assert stock["reports"] == [[]]
    assert exact["outputs"] == stock["outputs"]
    [layers] = exact["reports"]
    assert [r["layer"] for r in layers] == [0, 1, 2, 3]
    for layer in layers:
        assert layer["kept_share"] == 1 and not layer["sparse"]
        # Prompts of 64 tokens and more are ours, in steps of at most 256; decode is not.
        assert layer["served"] >= 10 and layer["stock"]["short calls and decode"] > 10


def test_sparse_reports_its_kept_share(runs):
    found, log = runs["sparse"]
    [layers] = found["reports"]
    assert [r["sparse"] for r in layers] == [False, True, True, False]
    assert layers[0]["kept_share"] == 1 and 0.1 < layers[1]["kept_share"] < 0.95
    assert "tokensparse: kept " in log
    assert "is active: sparse attention, coverage 0.3, share kv_group" in log
    assert "is active: exact attention; prompts of 64 query rows" in runs["exact"][1]
    assert found["outputs"] != runs["stock"][0]["outputs"]


def test_blocks_keep_every_token_and_not_every_pair(runs):
    found, log = runs["blocks"]
    [layers] = found["reports"]
    assert [r["kept_share"] for r in layers] == [1] * 4 and layers[0]["pairs_share"] == 1
    assert layers[1]["sparse_calls"] > 0 and 0.05 < layers[1]["pairs_share"] < 0.95
    assert f"is active: sparse attention, every token, blocks {BLOCKS}"[:60] in log
    assert found["outputs"] != runs["stock"][0]["outputs"]


def post(port, prompt):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["text"]


def test_server(model, tmp_path):  # noqa: F811
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module = "vllm.entrypoints.launchers.api_server.entry"  # from 0.32 on
    if importlib.util.find_spec("vllm.entrypoints.launchers") is None:
        module = "vllm.entrypoints.openai.api_server"
    command = [sys.executable, "-m", module]
    command += ["--model", str(model), "--served-model-name", "tiny", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "2048", "--max-num-batched-tokens", "512"]
    command += ["--max-num-seqs", "32"]
    environment = {**os.environ, **QUIET, "TOKENSPARSE_COVERAGE": "0.1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")  # the engine in its own process, as served
    environment["TOKENSPARSE_MIN_TOKENS"] = "64"
    environment["TOKENSPARSE_MIN_KEYS"], environment["TOKENSPARSE_MIN_ROWS"] = "0", "2"
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        source = random.Random(9)
        texts = [
            " ".join(f"w{source.randrange(1, 97)}" for _ in range(source.randrange(2, 600)))
            for _ in range(64)
        ]
        deadline = time.monotonic() + 600
        while True:
            assert server.poll() is None, (tmp_path / "server.log").read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.5)
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(lambda text: post(port, text), texts))
        assert len(answers) == 64 and all(isinstance(answer, str) for answer in answers)
    finally:
        server.terminate()
        server.wait(60)
    assert "tokensparse: kept " in (tmp_path / "server.log").read_text()
