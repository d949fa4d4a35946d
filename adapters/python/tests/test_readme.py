# SPDX-License-Identifier: MIT
"""The snippets of README.md, between [name] and [/name], run as they stand there."""

import numpy as np
import pytest


def test_numpy(qkv, capsys):
    q, k, v = qkv(q_len=1500, k_len=1500, q_heads=8, kv_heads=2)
    # [numpy]
    import tokensparse

    exact = tokensparse.attend(q, k, v)  # [tokens, heads, dim] in, the same out
    out, kept = tokensparse.prefill(
        q, k, v, coverage=0.05, share="kv_group", dropped="local", return_kept=True
    )
    print(f"kept {kept[0]} of {len(k)} tokens")

    # Step by step, as `prefill` does it:
    scores = tokensparse.score(q, k)
    selected = tokensparse.select(
        scores, len(q), len(k), num_kv_heads=k.shape[1], coverage=0.05, share="kv_group"
    )
    again = tokensparse.attend(q, k, v, selected, dropped="local")
    # [/numpy]
    np.testing.assert_array_equal(again, out)
    assert exact.shape == q.shape
    assert capsys.readouterr().out == f"kept {kept[0]} of 1500 tokens\n"


def test_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from test_transformers import make, tokens

    make().save_pretrained(tmp_path)
    name, prompt = tmp_path, tokens()
    # [transformers]
    from transformers import AutoModelForCausalLM

    import tokensparse.transformers as ts

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="tokensparse")
    ts.configure(model)  # sparse: as measured on it, else built-in; or setting="setting.json", coverage=0.05
    answer = model.generate(prompt, max_new_tokens=8)
    print(ts.report(model))  # per layer: what was kept, what the stock kernel served and why
    # [/transformers]
    assert answer.shape[1] == prompt.shape[1] + 8
    assert len(ts.report(model)) == 4
    assert torch.is_tensor(answer)


@pytest.fixture
def engine_in_this_process(monkeypatch):  # whose undoing comes after
    """No later test finds the layers of vLLM's engine, which lives on, or writes to its folder of metrics."""
    pytest.importorskip("vllm")
    from tokensparse.vllm import metrics, steps

    monkeypatch.setenv(metrics.FOLDER, "")  # the engine makes another
    yield
    steps._layers.clear()  # vLLM freezes what an engine consists of: nobody collects it


def test_vllm(engine_in_this_process, tmp_path_factory, monkeypatch, capfd):
    from vllm_common import QUIET, make_model

    name = str(make_model(tmp_path_factory.mktemp("model")))
    for variable, value in QUIET.items():
        monkeypatch.setenv(variable, value)
    for variable, value in dict(MIN_TOKENS=64, MIN_KEYS=0, MIN_ROWS=2, WINDOW=32).items():
        monkeypatch.setenv(f"TOKENSPARSE_{variable}", str(value))
    monkeypatch.setenv("TOKENSPARSE_COVERAGE", "")  # put back afterwards
    tokens = [1 + (7 * i + i // 5) % 90 for i in range(300)]
    prompts = [{"prompt_token_ids": tokens[:n]} for n in (300, 200)]
    # [vllm]
    import os

    os.environ["TOKENSPARSE_COVERAGE"] = "0.1"  # or TOKENSPARSE_SETTING; else exact

    import vllm

    import tokensparse.vllm

    engine = vllm.LLM(model=name, max_model_len=1024, enforce_eager=True)
    answers = engine.generate(prompts, vllm.SamplingParams(max_tokens=8, temperature=0))
    for rank in engine.collective_rpc(tokensparse.vllm.worker_report):
        print([(layer["layer"], layer["kept_share"]) for layer in rank])
    # [/vllm]
    assert [len(answer.outputs[0].token_ids) for answer in answers] == [8, 8]
    [(first, all_kept), (second, some_kept)] = eval(capfd.readouterr().out.splitlines()[-1])[:2]
    assert (first, all_kept, second) == (0, 1, 1) and 0.3 < some_kept < 1
