# SPDX-License-Identifier: MIT
"""The restated engine inside small models of transformers, against attention of their own."""
import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lab.engines import EngineError, hugging_face, restated_engine  # noqa: E402
from lab.prompts import Prompt  # noqa: E402

PROMPT = Prompt("t", 200, 0, tuple(range(3, 180)), (5, 6, 7), ("x",), 8)
SHAPE = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 400}  # fmt: skip


def engine_of(monkeypatch, model, chunk=0):
    def load(path, attention, device, raw):
        model.set_attn_implementation(attention)
        return model, None

    monkeypatch.setattr(hugging_face, "load", load)
    return restated_engine.Engine("m", device="cpu", chunk=chunk)


@pytest.fixture
def gemma():
    torch.manual_seed(3)
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(
        **SHAPE, num_hidden_layers=4, sliding_window=32, layer_types=kinds, query_pre_attn_scalar=8
    )
    return transformers.Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize("chunk", [0, 70])
def test_layers_with_a_window_attend_as_the_model_does(monkeypatch, gemma, chunk):
    gemma.set_attn_implementation("eager")
    ids = torch.tensor([PROMPT.tokens + PROMPT.answer_tokens])
    logits = gemma(ids).logits.detach()[0, len(PROMPT.tokens) - 1 : -1]
    wanted, _ = hugging_face.judged(logits, torch.tensor(PROMPT.answer_tokens), PROMPT)
    got = engine_of(monkeypatch, gemma, chunk).measure(PROMPT, {})
    assert got.loss == pytest.approx(wanted, abs=1e-5) and got.pairs == 1


def test_a_window_is_not_made_sparse_and_counts_its_own_pairs(monkeypatch, gemma):
    engine = engine_of(monkeypatch, gemma)
    sparse = {"coverage": 0.5, "min_tokens": 8, "window": 16, "sink": 2, "band": 4}
    got = engine.measure(PROMPT, sparse)
    n = len(PROMPT.tokens)
    in_window = 32 * 33 / 2 + (n - 32) * 32
    least = (2 * in_window + n * (n + 1) / 2) / (2 * in_window + n * (n + 1))
    assert least < got.pairs < 1  # of two layers with the whole prompt the last stays dense
    assert 0.75 < got.kept < 1


def test_a_setting_by_layer(monkeypatch):
    torch.manual_seed(3)
    config = transformers.Qwen2Config(**SHAPE, num_hidden_layers=4)
    engine = engine_of(monkeypatch, transformers.Qwen2ForCausalLM(config).eval())
    base = {"coverage": 0.5, "min_tokens": 8, "window": 16, "sink": 2, "band": 4}
    both, none = engine.measure(PROMPT, base), engine.measure(PROMPT, {})
    one = engine.measure(PROMPT, {**base, "by_layer": {"2-3": {"coverage": 0}}})
    assert both.pairs < one.pairs < none.pairs == 1
    shares = one.more["pairs_by_layer"]
    assert shares[0] == shares[2] == shares[3] == 1 and sum(shares) / 4 == pytest.approx(one.pairs, abs=1e-4)
    assert engine.measure(PROMPT, {**base, "by_layer": {"1-2": {"coverage": 0}}}).loss == none.loss
    assert engine.measure(PROMPT, {**base, "min_keys": 500}).loss == none.loss
    with pytest.raises(EngineError, match="by_layer"):
        engine.measure(PROMPT, {**base, "by_layer": {"4": {}}})


def test_scores_of_a_gguf_file_are_ranks_of_merges():
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<unk>", "a", "b", "c", "d", "ab", "cd", "abc", "abcd"]
    spec = json.loads(tokenizers.Tokenizer(tokenizers.models.Unigram([(p, -float(i**3)) for i, p in enumerate(pieces)], 0)).to_str())
    assert tokenizers.Tokenizer.from_str(json.dumps(spec)).encode("abcd").tokens == list("abcd")  # as transformers reads it
    made = tokenizers.Tokenizer.from_str(json.dumps(hugging_face.by_merges(spec)))
    assert made.encode("abcd").tokens == ["abcd"] and made.encode("dabc").tokens == ["d", "abc"]
    assert made.encode("bcd").tokens == ["b", "cd"] and made.decode(made.encode("dabc").ids).replace(" ", "") == "dabc"
