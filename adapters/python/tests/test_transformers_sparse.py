# SPDX-License-Identifier: MIT
"""Sparse layers in transformers: the setting, what its layers do, reports, profiles, other methods."""

import os
import subprocess

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_transformers import LENGTH, make, tokens

import tokensparse
import tokensparse.transformers as ts
from tokensparse import Setting


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def capture(model, layer):
    """q, k, v as the layer's attention saw them, [tokens, heads, dim], and what it returned."""
    seen = {}
    attend = tokensparse.methods.attend

    def spy(choice, q, k, v, out, state):
        results = attend(choice, q, k, v, out, state)
        seen.setdefault(len(seen), [x.clone() for x in (q, k, v, out)])
        return results

    tokensparse.methods.attend = spy
    try:
        model(tokens())
    finally:
        tokensparse.methods.attend = attend
    return seen[layer]


VOTE = dict(coverage=0.2, window=32, min_tokens=32, share="kv_group")
SPARSE = dict(**VOTE, dropped="local", sink=3, band=7, layers=(1, 2), min_keys=0, min_rows=2)


def test_sparse_layers(model, tmp_path):
    model.set_attn_implementation("tokensparse")
    options = dict(**VOTE, dropped="local", sink=3, band=7)
    ts.configure(model, SPARSE)
    try:
        q, k, v, out = capture(model, 1)
        report = ts.report(model, reset=True)
        assert not ts.report(model)
    finally:
        ts.configure(model, layers="none")
    assert [r.named for r in report] == [False, True, True, False]
    assert report[0].kept_share == 1 and 0.2 < report.kept_share < report.kept_share_of_all < 1
    assert 0.2 < report.pairs_share < 1
    assert "kept: sparse layers" in str(report) and report.asdict()[1]["sparse_calls"] == 1
    assert torch.equal(out, tokensparse.prefill(q, k, v, **options))
    kept = report.kept_share
    for long_keys, more in ((len(k), True), (len(k) + 1, False)):
        ts.configure(model, SPARSE, long_keys=long_keys, long_coverage=0.001)
        try:
            capture(model, 1)
            assert (ts.report(model).kept_share > kept) == more
        finally:
            ts.configure(model, layers="none")
    for short, why in ((dict(min_keys=len(k) + 1), "keys"), (dict(min_rows=len(q) + 1), "rows")):
        ts.configure(model, SPARSE, **short)
        try:
            q, k, v, exact = capture(model, 1)
            report = ts.report(model)
        finally:
            ts.configure(model, layers="none")
        assert [sum(r.exact.values()) for r in report] == [0, 1, 1, 0] and report.kept_share == 1
        assert list(report.never_sparse) == [1, 2] and why in report.never_sparse[1]
        assert "named sparse, never were: layers 1, 2 (fewer" in str(report)
        assert torch.equal(exact, tokensparse.prefill(q, k, v, coverage=0.0))
    reference = tokensparse.prefill(q, k, v, context=tokensparse.Context("ref"), **options)
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=1e-5)

    program = os.environ.get("TOKENSPARSE_PROGRAM")
    if not program:
        pytest.skip("TOKENSPARSE_PROGRAM is not set: not compared with the program's apply")
    safetensors = pytest.importorskip("safetensors.numpy")
    names = {"q": q, "k": k, "v": v}
    arrays = {name: np.ascontiguousarray(x.numpy()) for name, x in names.items()}
    safetensors.save_file(arrays, tmp_path / "in.safetensors")
    arguments = ["--coverage", "0.2", "--window", "32", "--min-tokens", "32", "--share", "kv_group"]
    arguments += ["--dropped", "zero"]
    files = [tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors"]
    subprocess.run([program, "apply", *files, *arguments], check=True, timeout=60)
    applied = safetensors.load_file(tmp_path / "out.safetensors")["out"]
    np.testing.assert_array_equal(applied, tokensparse.prefill(q, k, v, **VOTE).numpy())


def seen(kept, lists, heads, rows):
    """Which keys each query of a whole prompt sees, [heads, rows, rows], one by one."""
    mask = torch.zeros(heads, rows, rows, dtype=torch.bool)
    for head in range(heads):
        indices = kept.indices[0, head * kept.indices.shape[1] // heads, : kept.kept[0]].tolist()
        for entry, token in enumerate(indices):
            m = entry // lists.block
            for n in lists.blocks[0, head, m, : lists.counts[0, head, m]].tolist():
                mask[head, token, indices[n * lists.block : min((n + 1) * lists.block, entry + 1)]] = True
        for token in set(range(rows)) - set(indices):
            near = [*range(3), *range(max(token - 6, 0), token + 1)]  # sink and band
            mask[head, token, [key for key in near if key <= token]] = True
    return mask


@pytest.mark.parametrize("coverage", [0.2, 0])
def test_layers_by_blocks_are_attention_under_their_mask(model, coverage):
    model.set_attn_implementation("tokensparse")
    blocks = dict(pattern="pooled", block=16, threshold=0.5)
    ts.configure(model, SPARSE, coverage=coverage, blocks=blocks)
    try:
        q, k, v, out = capture(model, 1)
        report = ts.report(model)
    finally:
        ts.configure(model, layers="none", blocks="none")
    options = dict(**{**VOTE, "coverage": coverage}, dropped="local", sink=3, band=7)
    _, kept = tokensparse.prefill(q, k, v, return_selection=True, **options)
    lists = tokensparse.estimate(q, k, "pooled", selected=kept, block=16, threshold=0.5)
    mask = seen(kept, lists, q.shape[1], len(q))
    dense = mask.shape[0] * len(q) * (len(q) + 1) / 2
    shared = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(shared, 1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q.double(), keys) * q.shape[-1] ** -0.5
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, values).float()
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert report[1].pairs_share == pytest.approx(mask.sum().item() / dense) and mask.sum() < dense
    assert report[1].sparse_calls == 1 and report[0].pairs_share == 1
    assert (report[1].kept_share == 1) == (coverage == 0)
    assert report.asdict()[1]["pairs_share"] == report[1].pairs_share


def test_the_setting_travels_with_the_model(tmp_path):
    small = make()
    small.set_attn_implementation("tokensparse")
    ts.configure(small, SPARSE)
    with pytest.raises(tokensparse.InvalidArgument, match="window: must be a whole number"):
        ts.configure(small, window=0)
    before = small(tokens()).logits
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="tokensparse"
    ).eval()
    assert torch.equal(again(tokens()).logits, before)
    assert ts.report(again).kept_share < 1
    assert ts.configure(again) == Setting.make(SPARSE)


def test_configure(tmp_path):
    small = make()
    with pytest.warns(tokensparse.TokensparseWarning, match='attends with "sdpa" until'):
        assert ts.configure(small) == Setting()
    small.set_attn_implementation("tokensparse")
    Setting(coverage=0.05, model={"num_layers": 4}).save(tmp_path / "small.json")
    made = ts.configure(small, tmp_path / "small.json", band=9)
    assert (made.coverage, made.band) == (0.05, 9) and ts.configure(small, sink=1).band == 9
    Setting(model={"num_layers": 5}).save(tmp_path / "other.json")
    for wrong, message in [
        (dict(setting=tmp_path / "other.json"), "is for a model with num_layers 5, this one has 4"),
        (
            dict(setting={}, layers=[99]),
            "layers: must be below 4, the layers of this model, are 99",
        ),
        (dict(layers="2-1"), "layers: must be middle, all, none or"),
        (dict(min_query=65), "min_query: is now min_rows"),
        (dict(method="magic"), "method: must be one of .*tsa"),
    ]:
        with pytest.raises(tokensparse.InvalidArgument, match=message):
            ts.configure(small, **wrong)
    assert ts.configure(small).band == 9


def test_middle_means_layers_that_attend_to_the_whole_prompt():
    kinds = ["sliding_attention", "full_attention"] * 3
    special = make(
        num_hidden_layers=6, sliding_window=64, use_sliding_window=True, layer_types=kinds
    )
    special.set_attn_implementation("tokensparse")
    ts.configure(special, **VOTE, min_keys=0, min_rows=2)
    special(tokens())
    report = ts.report(special)
    assert (
        [r.layer for r in report if r.named]
        == [1, 3]
        == [r.layer for r in report if r.sparse_calls]
    )
    assert ts.profile(special, Letters(), "some text " * 30, delta=0.5).layers in ((1,), (3,))
    with pytest.warns(
        tokensparse.TokensparseWarning, match="layers 2 will never be sparse: sliding"
    ):
        ts.configure(special, layers=[2, 3])
    special(tokens())
    assert ts.report(special).never_sparse == {2: "sliding window"}


def test_a_set_that_keeps_everything_is_not_sparse(model):
    model.set_attn_implementation("tokensparse")
    ts.configure(model, SPARSE, coverage=1e-7, min_tokens=LENGTH)
    try:
        model(tokens())
        report = ts.report(model)
    finally:
        ts.configure(model, layers="none")
    assert report.never_sparse == dict.fromkeys((1, 2), "leaving tokens or blocks out would not have paid")
    assert report.pairs_share == 1


def test_reasons_are_told_apart(model):
    model.set_attn_implementation("tokensparse")
    ts.report(model, reset=True)
    holes = torch.ones(1, LENGTH, dtype=torch.long)
    holes[0, 50:60] = 0
    model(tokens(), attention_mask=holes)
    model(tokens(), attention_mask=torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool))
    model(tokens(40))
    model(tokens(1))
    assert ts.report(model, reset=True)[0].stock == {
        "holes in the attention mask": 1,
        "a mask of the caller's own": 1,
        "short call": 1,
        "decode": 1,
    }


def test_another_method(model):
    """A method that takes the sets of the layer before."""

    def choose(layer, q, k, state):
        assert (state.num_layers, state.scale, state.precision) == (4, 16**-0.5, "f32")
        if layer == 1:
            scores = tokensparse.score(q, k, window=32)
            state.memory["sets"] = tokensparse.select(
                scores, len(q), len(k), num_kv_heads=2, share="kv_group", window=32, min_tokens=8,
                keep=0.5,
            )  # fmt: skip
        return state.memory.get("sets", tokensparse.methods.Dense())

    tokensparse.methods.register("before", choose)
    model.set_attn_implementation("tokensparse")
    ts.configure(model, layers="all", method="before", dropped="zero")
    try:
        model(tokens(rows=2))
        report = ts.report(model)
        assert [r.sparse_calls for r in report] == [0, 2, 2, 2]
        assert report[0].exact == {"the method chose so": 2} and report[3].kept_share < 0.9
        q, k, v, out = capture(model, 2)
    finally:
        ts.configure(model, layers="none", method="tsa")
    assert (out == 0).all(-1).any() and not (out == 0).all()


class Letters:
    """The least a tokenizer has to be."""

    def __call__(self, text, return_tensors):
        class Encoded:
            input_ids = torch.tensor([[1 + ord(c) % 96 for c in text]])

        return Encoded


def test_profile(model, tmp_path):
    model.set_attn_implementation("tokensparse")
    found = ts.profile(model, Letters(), "a calibration text " * 20, delta=0.5)
    assert found.tokens == 380 and len(found.drift) == 4
    states = model(Letters()("a calibration text " * 20, "pt").input_ids, output_hidden_states=True)
    before, after = states.hidden_states[1:3]
    drift = ((after - before).norm(dim=-1) / before.norm(dim=-1)).mean().item()
    assert found.drift[1] == pytest.approx(drift, rel=1e-3)
    assert found.layers == (1, 2)
    found.save(tmp_path / "profile.json")
    assert ts.configure(model, tmp_path / "profile.json").model["head_dim"] == 16
    ts.configure(model, layers="none")


def test_what_was_measured_on_a_model_is_used_and_said(model, monkeypatch, caplog):
    measured = Setting(coverage=0.2, name="measured", model={"name": "Tiny"})
    monkeypatch.setattr(ts, "recommended", lambda config: measured)
    caplog.set_level("INFO")
    try:
        made = ts.configure(model, "recommended", band=7)
    finally:
        ts.configure(model, layers="none")
    assert made == measured.changed(band=7)
    assert "as in measured" in caplog.text and "measured on Tiny" in caplog.text
    monkeypatch.setattr(ts, "recommended", lambda config: None)
    try:
        assert ts.configure(model, "recommended") == Setting()
    finally:
        ts.configure(model, layers="none")
