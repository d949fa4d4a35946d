# SPDX-License-Identifier: MIT
"""LazyLLM on tiny random models: what its schedule promises."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_transformers import make, tokens

import tokensparse
from tokensparse.methods import lazyllm
from tokensparse.methods.lazyllm import LazyLLM, Schedule

LENGTH = 200


@pytest.fixture(scope="module")
def model():
    return make()


def stock(model, ids, count):
    model.set_attn_implementation("tokensparse")
    with torch.no_grad():
        out = model.generate(
            ids, max_new_tokens=count, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    return out.sequences[0, ids.shape[1] :].tolist(), torch.stack(out.logits)[:, 0]


def watched(monkeypatch):
    """Logits of every step, and how often each (token, layer) was computed."""
    logits, counts, alive = [], {}, []
    run, write = lazyllm._Step.run, lazyllm._Layer.write

    def spy_run(self, ids):
        logits.append(run(self, ids))
        alive.append(self.alive_counts)
        return logits[-1]

    def spy_write(self, rows, *rest):
        for row in rows.tolist():
            counts[id(self), row] = counts.get((id(self), row), 0) + 1
        write(self, rows, *rest)

    monkeypatch.setattr(lazyllm._Step, "run", spy_run)
    monkeypatch.setattr(lazyllm._Layer, "write", spy_write)
    return logits, counts, alive


def test_nothing_dropped_is_dense_bit_for_bit(model, monkeypatch):
    ids = tokens(LENGTH)
    expected, expected_logits = stock(model, ids, 6)
    logits, counts, _ = watched(monkeypatch)
    for schedule in (Schedule((), ()), Schedule((0, 2), (1.0, 1.0))):
        logits.clear()
        answer = LazyLLM(model, schedule).generate(ids, 6)
        assert answer.tokens == expected and answer.rows_share == answer.computed_share == 1
        assert torch.equal(torch.stack(logits), expected_logits)
    assert model.config._attn_implementation == "tokensparse"


def test_each_token_is_computed_once_a_layer_and_comes_back(model, monkeypatch):
    ids = tokens(LENGTH)
    logits, counts, alive = watched(monkeypatch)
    answer = LazyLLM(model, Schedule((0, 2), (0.5, 0.5), window=1)).generate(ids, 12)
    assert set(counts.values()) == {1}
    assert answer.rows == [200, 100, 100, 50] and answer.alive == [200, 100, 50]
    assert answer.pairs_share == (200 * 201 + 2 * 100 * 101 + 50 * 51) / (4 * 200 * 201)
    assert all(a >= b >= c for a, b, c in alive)
    # Other tokens were wanted later than the first step's: some came back.
    assert len(counts) > sum(answer.rows) + 4 * 11
    assert answer.rows_share < answer.computed_share < 1
    assert answer.computed_share == len(counts) / (4 * 211)


def test_a_token_that_comes_back_stands_where_it_stood(model):
    """Its key in the first pruned layer is the one that the whole prompt gives it there."""
    ids = tokens(LENGTH)
    reading = LazyLLM(model, Schedule((2,), (0.5,), window=1)).read(ids, 12)
    before = reading._cache.computed[1, :LENGTH].clone()
    for token in range(1, 12):
        reading.push(token)
    back = reading._cache.computed[1, :LENGTH] & ~before
    assert back.any()
    model.set_attn_implementation("tokensparse")
    with torch.no_grad():
        whole = model(ids, use_cache=True).past_key_values.layers[3].keys[0]
    torch.testing.assert_close(
        reading._cache.layers[3].keys[:, :LENGTH][:, back], whole[:, back], atol=1e-5, rtol=1e-4
    )


def test_the_sets_of_a_step_nest(model, monkeypatch):
    sets, enter = [], lazyllm._Step._enter

    def spy(self, stage, *args):
        sets.append((stage, set(self._alive.tolist())))
        return enter(self, stage, *args)

    monkeypatch.setattr(lazyllm._Step, "_enter", spy)
    LazyLLM(model, Schedule((0, 2), (0.5, 0.5), window=1)).generate(tokens(LENGTH), 6)
    first = [alive for stage, alive in sets if stage == 1]
    second = [alive for stage, alive in sets if stage == 2]
    assert len(first) == len(second) == 6
    assert all(later < earlier for earlier, later in zip(first, second))
    assert len(set(map(frozenset, second))) > 1  # each step chooses anew


def test_matches_a_restatement_without_a_cache(model, monkeypatch):
    """The first step again, with every stage's tokens cut out of a full forward pass by hand."""
    ids, keep = tokens(LENGTH), 0.5
    logits, _, _ = watched(monkeypatch)
    sets = []
    vote = lazyllm._Step._vote

    def spy(self, *args):
        vote(self, *args)
        sets.append(self._sets)

    monkeypatch.setattr(lazyllm._Step, "_vote", spy)
    LazyLLM(model, Schedule((1,), (keep,), window=16, pool=3)).generate(ids, 1)
    model.set_attn_implementation("eager")
    body = model.model
    with torch.no_grad():
        hidden = body.embed_tokens(ids)
        positions = torch.arange(LENGTH)[None]
        for layer in range(4):
            if layer == 2:
                kept = sets[0]
                assert len(kept) == 100 and kept[-16:].tolist() == list(range(184, 200))
                hidden, positions = hidden[:, kept], positions[:, kept]
            count = hidden.shape[1]
            mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
            turn = body.rotary_emb(hidden, positions)
            hidden = body.layers[layer](hidden, attention_mask=mask, position_embeddings=turn)
        expected = model.lm_head(body.norm(hidden[:, -1]))[0]
    torch.testing.assert_close(logits[0], expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    "schedule, text",
    [
        (Schedule((1,), ()), "keep: must have one share"),
        (Schedule((2, 1), (0.5, 0.5)), "layers: must be ascending"),
        (Schedule((3,), (0.5,)), "layers: must lie in 0 .. 2"),
        (Schedule((1,), (0.0,)), r"keep: must lie in \(0, 1\]"),
        (Schedule((1,), (0.5,), window=0), "window: must be at least 1"),
        (Schedule((1,), (0.5,), pool=4), "pool: must be odd"),
    ],
)
def test_bad_schedules_are_named(model, schedule, text):
    with pytest.raises(tokensparse.InvalidArgument, match=text):
        LazyLLM(model, schedule)


def test_other_models_and_shapes_are_refused(model):
    gemma = make("Gemma2", head_dim=16)
    with pytest.raises(tokensparse.Unsupported, match="family must be one of"):
        LazyLLM(gemma, Schedule((1,), (0.5,)))
    sliding = make("Mistral", sliding_window=32)
    with pytest.raises(tokensparse.Unsupported, match="must attend to the whole prompt"):
        LazyLLM(sliding, Schedule((1,), (0.5,)))
    before = model.config._attn_implementation
    lazy = LazyLLM(model, Schedule((1,), (0.5,)))
    with pytest.raises(tokensparse.InvalidArgument, match="input_ids: must be"):
        lazy.generate(tokens(20, rows=2))
    with pytest.raises(tokensparse.InvalidArgument, match="max_new_tokens: must be"):
        lazy.generate(tokens(20), 0)
    reading = lazy.read(tokens(20), 1)
    reading.push(5)
    with pytest.raises(tokensparse.InvalidArgument, match="room: must hold"):
        reading.push(6)
    assert model.config._attn_implementation == before
