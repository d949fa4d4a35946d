# SPDX-License-Identifier: MIT
"""vLLM on the CPU: its engine and its HTTP server with a tiny random model."""

import concurrent.futures
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("vllm")
torch = pytest.importorskip("torch")

HERE = Path(__file__).parent
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Qwen2 with attention far from uniform, and a tokenizer of 90 words."""
    import tokenizers
    import transformers

    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=97,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("model")
    tiny = transformers.Qwen2ForCausalLM(config)
    tiny.generation_config.eos_token_id = None
    tiny.save_pretrained(folder)
    words = {f"w{i}": i for i in range(97)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="w1", eos_token="w0"
    ).save_pretrained(folder)
    return folder


def prompts():
    """Two rounds of 8 prompts of mixed length; four share a prefix, the second finds it cached."""
    source = random.Random(5)
    tokens = lambda count: [source.randrange(1, 97) for _ in range(count)]
    shared = tokens(400)
    first = [tokens(n) for n in (3, 40, 150, 700)]
    first += [shared + tokens(n) for n in (1, 30, 100, 500)]
    second = [shared + tokens(n) for n in (90, 20, 300, 2)] + [tokens(n) for n in (64, 65, 66, 257)]
    return [first, second]


def engine(model, tmp_path, environment=None, **request):
    """Runs vllm_engine.py and returns what it printed."""
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"rounds": prompts(), "max_tokens": 8, **request}))
    done = subprocess.run(
        [sys.executable, str(HERE / "vllm_engine.py"), str(model), str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **QUIET, **(environment or {})},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout + done.stderr


SPARSE = {
    "TOKENSPARSE_MIN_TOKENS": "32",
    "TOKENSPARSE_WINDOW": "32",
    "TOKENSPARSE_SPARSE_LAYERS": "1-2",
    "TOKENSPARSE_SHARE": "kv_group",
}
RANKS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """The same prompts through five engines; their starts are most of the time, so two at once."""
    requests = {
        "stock": ({"TOKENSPARSE_DISABLE": "1"}, {}),
        "exact": ({}, {}),
        "coverage": ({"TOKENSPARSE_COVERAGE": "0.3", **SPARSE}, {}),
        "keep": ({"TOKENSPARSE_KEEP": "0.5", **SPARSE}, {}),
        "keep on 2 ranks": ({"TOKENSPARSE_KEEP": "0.5", **SPARSE, **RANKS}, {"ranks": 2}),
    }
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        started = {
            name: pool.submit(engine, model, tmp_path_factory.mktemp("run"), environment, **request)
            for name, (environment, request) in requests.items()
        }
        return {name: run.result() for name, run in started.items()}


def test_exact_equals_stock(runs):
    stock, exact = runs["stock"][0], runs["exact"][0]
    assert stock["reports"] == [[]]
    assert exact["outputs"] == stock["outputs"]
    [layers] = exact["reports"]
    assert [r["layer"] for r in layers] == [0, 1, 2, 3]
    for layer in layers:
        assert layer["kept_share"] == 1 and not layer["sparse"]
        # Prompts of more than 64 tokens are ours, in steps of at most 256; decode is not.
        assert layer["served"] >= 10 and layer["stock"]["short calls and decode"] > 10


def test_sparse_reports_its_kept_share(runs):
    found, log = runs["coverage"]
    [layers] = found["reports"]
    assert [r["sparse"] for r in layers] == [False, True, True, False]
    assert layers[0]["kept_share"] == 1 and 0.1 < layers[1]["kept_share"] < 0.95
    assert "tokensparse: kept " in log
    assert found["outputs"] != runs["stock"][0]["outputs"]


def test_two_ranks_equal_one(runs):
    # With a fixed share to keep, the sets do not depend on how the heads are spread.
    one, two = runs["keep"][0], runs["keep on 2 ranks"][0]
    assert len(two["reports"]) == 2
    for rank in two["reports"]:
        shares = [layer["kept_share"] for layer in rank]
        assert shares == [layer["kept_share"] for layer in one["reports"][0]]
    assert two["outputs"] == one["outputs"]


def post(port, prompt):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["text"]


def test_server(model, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", "tiny", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "2048", "--max-num-batched-tokens", "512"]
    command += ["--max-num-seqs", "32"]
    environment = {**os.environ, **QUIET, "TOKENSPARSE_COVERAGE": "0.1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")  # the engine in its own process, as served
    environment["TOKENSPARSE_MIN_TOKENS"] = "64"
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        source = random.Random(9)
        texts = [
            " ".join(f"w{source.randrange(1, 97)}" for _ in range(source.randrange(2, 600)))
            for _ in range(64)
        ]
        deadline = time.monotonic() + 150
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
