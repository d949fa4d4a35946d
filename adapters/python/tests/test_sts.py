# SPDX-License-Identifier: MIT
"""STS on tiny random models: a draft's votes as the target's sets."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_transformers import make, tokens

import tokensparse
import tokensparse.transformers as ts
from tokensparse.methods import _decoders, sts, sts_decoding

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


def steps(pair, ids, answer, keep, **options):
    reading = sts_decoding.Reading(pair, ids, keep, sink=3, recent=7, **options)
    logits = [reading.logits]
    logits += [reading.push(token) for token in answer]
    return reading, torch.stack(logits)


@pytest.fixture
def exact_prompt(models, itself):
    """A pair whose target reads the prompt exactly, and decodes by its own attention in one layer."""
    target, _ = models
    return sts.Sts(target, target, itself, setting={**OPTIONS, "coverage": 0.0}, layers=(2,))


def masked_step(model, ids, token, keys):
    """The logits behind one more token, a layer's heads attending to `keys` of it alone."""
    from transformers import DynamicCache

    def attention(module, query, key, value, mask, **kwargs):
        if module.layer_idx == 2:
            mask = torch.zeros(1, 4, 1, key.shape[2], dtype=torch.bool)
            mask.scatter_(3, keys(query, key)[None, :, None], True)
        return sdpa(module, query, key, value, mask, scaling=kwargs["scaling"])

    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    transformers.AttentionInterface.register("masked step", attention)
    cache = DynamicCache()
    model.set_attn_implementation("tokensparse")
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
        ids, position = torch.tensor([token]), torch.tensor([ids.shape[1]])
        hidden = _decoders.run_layers(model, ids, position, cache, "masked step")
        return model.lm_head(model.model.norm(hidden))[0, -1]


def test_decoding_that_reads_everything_is_dense_bit_for_bit(exact_prompt):
    target, ids, answer = exact_prompt.target, tokens(), tokens(6, seed=5)[0].tolist()
    _, found = steps(exact_prompt, ids, answer, keep=500)
    target.set_attn_implementation("tokensparse")
    cache = transformers.DynamicCache()
    with torch.no_grad():
        expected = [target(ids, past_key_values=cache, logits_to_keep=1).logits[0, -1]]
        for token in answer:
            one = torch.tensor([[token]])
            expected.append(target(one, past_key_values=cache).logits[0, -1])
    assert torch.equal(found, torch.stack(expected))


def test_a_step_reads_the_keys_that_the_draft_looks_at(exact_prompt):
    """A model as its own draft: the keys are those its own head looks at most, first and last with them."""

    def keys(query, key):
        own = (query[0, :, 0, None] * key[0]).sum(-1)  # a head each has its own keys here
        own[:, :3] = own[:, -7:] = float("inf")
        return own.topk(40).indices

    target, ids = exact_prompt.target, tokens()
    expected = masked_step(target, ids, 11, keys)
    reading, found = steps(exact_prompt, ids, [11], keep=40, watch=True)
    torch.testing.assert_close(found[-1], expected, atol=1e-4, rtol=1e-4)
    ((held, best),) = reading.held
    assert 0 < held <= best + 1e-6 < 1
    _, dense = steps(exact_prompt, ids, [11], keep=500)
    assert (found[-1] - dense[-1]).abs().max() > 1e-3


def test_keys_that_one_step_leaves_out_another_reads(exact_prompt, monkeypatch):
    sets, chosen = [], sts_decoding.Reading.chosen

    def spy(self, *args):
        sets.append(chosen(self, *args))
        return sets[-1]

    monkeypatch.setattr(sts_decoding.Reading, "chosen", spy)
    reading, _ = steps(exact_prompt, tokens(), tokens(8, seed=5)[0].tolist(), keep=40)
    first, *later = [set(found[0].tolist()) for found in sets if found is not None]
    assert len(later) == 7 and all(len(found) == 40 for found in later)
    assert any(key < 200 and key not in first for found in later for key in found)
    assert reading.length == 208


def test_another_draft_decodes(models):
    target, draft = models
    heads = sts.calibrate(target, draft, tokens(), top=16, window=32)
    pair = sts.Sts(target, draft, heads, setting=OPTIONS)
    answer = pair.generate(tokens(), 5, decode_keep=100)
    assert len(answer.tokens) == 5 and answer.draft_seconds < answer.seconds_to_first_token
    assert answer.seconds_to_first_token < answer.seconds and 0 < answer.pairs_share < 1
    with pytest.raises(tokensparse.InvalidArgument, match="hold the 4 first and 64 last keys, is 67"):
        pair.generate(tokens(), 5, decode_keep=67)
