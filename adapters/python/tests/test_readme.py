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
    from test_transformers import Letters, make, tokens

    make().save_pretrained(tmp_path)
    name, tokenizer = tmp_path, Letters()
    calibration_text, prompt = "some ordinary text " * 20, tokens()
    # [transformers]
    from transformers import AutoModelForCausalLM

    import tokensparse.transformers as ts

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="tokensparse")
    profile = ts.profile(model, tokenizer, calibration_text)  # once a model; profile.save(path)
    ts.configure(model, coverage=0.01, share="kv_group", sparse_layers=profile.sparse_layers)
    answer = model.generate(prompt, max_new_tokens=8)
    print(ts.report(model))  # per layer: what was kept, what the stock kernel served and why
    # [/transformers]
    assert answer.shape[1] == prompt.shape[1] + 8
    assert len(ts.report(model)) == 4
    assert torch.is_tensor(answer)
