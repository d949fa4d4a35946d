# SPDX-License-Identifier: MIT
"""A tiny model for vLLM, prompts, and engines that run them in processes of their own."""

import concurrent.futures
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

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
    """The folder of the tiny model."""
    return make_model(tmp_path_factory.mktemp("model"))


def make_model(folder):
    """A random Qwen2 with attention far from uniform, and a tokenizer of 90 words."""
    import tokenizers
    import torch
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
        timeout=900,
        env={**os.environ, **QUIET, **(environment or {})},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    [answer] = [line for line in done.stdout.splitlines() if line.startswith('{"outputs": ')]
    return json.loads(answer), done.stdout + done.stderr


def engines(model, tmp_path_factory, requests):
    """Runs some, each an environment and a request; most of it is their start: two at once."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        started = {
            name: pool.submit(engine, model, tmp_path_factory.mktemp("run"), environment, **request)
            for name, (environment, request) in requests.items()
        }
        return {name: run.result() for name, run in started.items()}


SPARSE = {
    "TOKENSPARSE_MIN_TOKENS": "32",
    "TOKENSPARSE_MIN_KEYS": "0",
    "TOKENSPARSE_MIN_ROWS": "2",
    "TOKENSPARSE_WINDOW": "32",
    "TOKENSPARSE_DROPPED": "zero",
}
