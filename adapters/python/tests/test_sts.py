# SPDX-License-Identifier: MIT
"""STS on tiny random models: a draft's votes as the target's sets."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_transformers import make, tokens

import tokensparse
import tokensparse.transformers as ts
from tokensparse.methods import sts

OPTIONS = dict(
    coverage=0.2, window=32, pool=3, min_tokens=32, share="kv_group", dropped="local", sink=3,
    band=7, layers=(1, 2), min_keys=0, min_rows=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def models():
    """Every query head has its own keys, so that a head's vote is its KV head's."""
    shape = dict(num_key_value_heads=4)
    target = make(**shape)
    other = make(**{**shape, "num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4})
    return target, other


@pytest.fixture(scope="module")
def itself(models):
    return sts.calibrate(models[0], models[0], tokens(), top=16, window=32)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_a_model_maps_to_itself(itself):
    assert itself.heads == [[[(layer, head)] for head in range(4)] for layer in range(4)]
    assert all(value == 1 for layer in itself.overlap for value in layer)


def test_its_own_draft_is_tsa_bit_for_bit(models, itself):
    target, _ = models
    target.set_attn_implementation("tokensparse")
    # One sparse layer: behind it the target's q and k are no longer the exact draft's.
    ts.configure(target, OPTIONS, layers=(1,), method="tsa")
    expected = logits(target, tokens())
    kept = ts.report(target, reset=True).kept_share
    pair = sts.Sts(target, target, itself, setting=OPTIONS, layers=(1,))
    pair.read(tokens())
    found = logits(target, tokens())
    assert 0 < ts.report(target, reset=True).kept_share == kept < 1
    assert torch.equal(found, expected)
    ts.configure(target, layers="none", method="tsa")


def test_nothing_dropped_is_dense_bit_for_bit(models, itself):
    target, _ = models
    target.set_attn_implementation("tokensparse")
    ts.configure(target, layers="none", method="tsa")
    expected = logits(target, tokens())
    pair = sts.Sts(target, target, itself, setting={**OPTIONS, "coverage": 0.0, "keep": 1.0})
    pair.read(tokens())
    assert torch.equal(logits(target, tokens()), expected)


def test_another_draft_and_a_file(models, tmp_path):
    target, draft = models
    made = sts.calibrate(target, draft, tokens(), top=16, window=32, heads=2)
    assert all(len(pairs) == 2 for layer in made.heads for pairs in layer)
    made.save(tmp_path / "map.json")
    assert sts.HeadMap.load(tmp_path / "map.json") == made
    before = draft.config._attn_implementation
    pair = sts.Sts(target, draft, tmp_path / "map.json", setting=OPTIONS)
    answer = pair.generate(tokens(), 5)
    assert len(answer.tokens) == 5 and 0 < answer.kept_share < 1 and answer.pairs_share < 1
    assert 0 < answer.draft_seconds < answer.seconds_to_first_token
    assert draft.config._attn_implementation == before
    # A prompt that the draft did not read is exact, and the report says why.
    logits(target, tokens(150))
    report = ts.report(target, reset=True)
    assert report.kept_share == 1 and "has not read this prompt" in str(report)


def test_bad_input_is_named(models, itself, tmp_path):
    target, draft = models
    with pytest.raises(tokensparse.InvalidArgument, match="draft must be the one it was made for"):
        sts.Sts(target, draft, itself)
    wide = make(num_key_value_heads=4, vocab_size=99)
    with pytest.raises(tokensparse.InvalidArgument, match="vocabularies have 97 and 99"):
        sts.Sts(target, wide, itself)
    with pytest.raises(tokensparse.InvalidArgument, match="top: must lie in 1 .. 168"):
        sts.calibrate(target, draft, tokens(), top=169, window=32)
    with pytest.raises(tokensparse.InvalidArgument, match="heads: must lie in 1 .. 12"):
        sts.calibrate(target, draft, tokens(), top=16, window=32, heads=13)
    with pytest.raises(tokensparse.InvalidArgument, match="must be long enough"):
        sts.calibrate(target, draft, tokens(40), top=4, window=16)
    path = tmp_path / "map.json"
    with pytest.raises(tokensparse.InvalidArgument, match="cannot be read"):
        sts.HeadMap.load(path)
    path.write_text("{}")
    with pytest.raises(tokensparse.InvalidArgument, match="format must be"):
        sts.HeadMap.load(path)
    itself.save(path)
    bad = json.loads(path.read_text())
    bad["heads"][1][2] = [[9, 0]]
    path.write_text(json.dumps(bad))
    with pytest.raises(tokensparse.InvalidArgument, match=r"names \[\(9, 0\)\]"):
        sts.Sts(target, target, str(path))
