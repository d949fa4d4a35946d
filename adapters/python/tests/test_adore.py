# SPDX-License-Identifier: MIT
"""ADORE on tiny random models: what its cache promises, and that its controller learns."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_transformers import make, tokens

import tokensparse
from tokensparse.methods import adore, adore_training
from tokensparse.methods.adore import Adore, Controller

LENGTH = 150
SMALL = dict(cache=60, rebuild=5, sink=2, recent=8)


@pytest.fixture(scope="module")
def model():
    made = make()
    made.set_attn_implementation("sdpa")
    return made


@pytest.fixture(scope="module")
def controller(model):
    torch.manual_seed(5)
    return Controller.of(model, state=16, rank=8).eval()


def exact(model, ids):
    """Logits behind each token, and the keys of each layer, with everything there."""
    cache = transformers.DynamicCache()
    with torch.no_grad():
        logits = model(ids, past_key_values=cache, use_cache=True).logits[0]
    return logits, [layer.keys[0] for layer in cache.layers]


def test_nothing_released_is_dense_bit_for_bit(model, controller):
    ids = tokens(LENGTH)
    with torch.no_grad():
        out = model.generate(
            ids, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    answer = Adore(model, controller, cache=LENGTH + 8).generate(ids, 8)
    assert answer.tokens == out.sequences[0, LENGTH:].tolist()
    assert (answer.released, answer.rows) == (0, 1)
    reading = Adore(model, controller, cache=LENGTH + 8).read(ids)
    for token, expected in zip(answer.tokens, out.logits):
        assert torch.equal(reading.logits, expected[0])
        reading.push(token)
    assert model.config._attn_implementation == "sdpa"


def test_the_cache_stays_as_large_as_it_is(model, controller):
    reading = Adore(model, controller, **SMALL).read(tokens(LENGTH))
    size, sets = reading.cache_bytes, []
    for token in range(1, 21):
        before = set(reading.positions.tolist())
        reading.push(token)
        held = reading.positions.tolist()
        assert reading.count == len(set(held)) == SMALL["cache"] and reading.cache_bytes == size
        now = LENGTH + token
        always = {0, 1, *range(now - SMALL["recent"], now)}
        assert always <= set(held) and max(held) == now - 1
        sets.append(set(held) - before)
    assert reading.rows == 20 * (1 + SMALL["rebuild"])
    # Released tokens came back, not the new ones alone.
    assert any(min(more) < LENGTH for more in sets)


def test_rebuilt_tokens_stand_at_their_own_positions(model, controller):
    """The first layer's keys know nothing but token and position: they are the exact ones."""
    ids, more = tokens(LENGTH), tokens(12, seed=9)
    reading = Adore(model, controller, **{**SMALL, "rebuild": 20}).read(ids)
    back = set()
    for token in more[0].tolist():
        before = set(reading.positions.tolist())
        reading.push(token)
        back |= {p for p in set(reading.positions.tolist()) - before if p < LENGTH}
    assert back
    _, keys = exact(model, torch.cat([ids, more], 1))
    held = reading._keys[0, :, : reading.count]
    torch.testing.assert_close(held, keys[0][:, reading.positions], atol=2e-5, rtol=2e-5)
    assert not torch.allclose(reading._keys[2, :, : reading.count], keys[2][:, reading.positions])


def test_a_step_is_attention_to_what_is_held(model, controller):
    """The same step with a mask over the whole sequence, layer by layer."""
    ids = tokens(LENGTH)
    reading = Adore(model, controller, **{**SMALL, "rebuild": 0}).read(ids)
    held = reading.positions.clone()
    found = reading.push(7)
    mask = torch.zeros(1, 1, 1, LENGTH + 1, dtype=torch.bool)
    mask[..., held] = mask[..., -1] = True
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
        expected = model(torch.tensor([[7]]), attention_mask=mask, past_key_values=cache).logits[0, -1]
        dense = exact(model, torch.cat([ids, torch.tensor([[7]])], 1))[0][-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - dense).abs().max() > 1e-2


def test_a_rebuilt_row_sees_what_is_held_before_it(model, controller):
    """All released tokens rebuilt at once over the exact rest, in one layer: nothing is lost."""
    one = make(num_hidden_layers=1)
    one.set_attn_implementation("sdpa")
    ranker = Controller.of(one, state=16, rank=8).eval()
    ids = tokens(LENGTH)
    reading = Adore(one, ranker, cache=60, rebuild=LENGTH, sink=2, recent=8).read(ids)
    assert reading.count == 60
    expected = exact(one, torch.cat([ids, torch.tensor([[7]])], 1))[0][-1]
    torch.testing.assert_close(reading.push(7), expected, atol=1e-4, rtol=1e-4)
    assert reading.rows == LENGTH - 60 + 1 and reading.count == 60


def test_the_controller_learns_and_is_stored(model, tmp_path):
    """On the same few sequences it comes to hold more attention than untrained."""
    samples = [tokens(length, seed=length)[0] for length in (544, 560, 571)]
    losses = []
    made = adore_training.train(
        model, samples, queries=16, epochs=10, batch=2, rate=1e-2, state=32, rank=16,
        on_step=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 20 and sum(losses[-4:]) < sum(losses[:4])
    torch.manual_seed(1)
    before = adore_training.held(model, Controller.of(model, state=32, rank=16), samples, 120, 8)
    after = adore_training.held(model, made, samples, 120, 8)
    assert before.controller < after.controller <= after.best == before.best <= 1
    assert 0 < after.last == before.last < after.best
    made.save(tmp_path / "c.safetensors")
    again = Controller.load(tmp_path / "c.safetensors")
    assert again.made_for == made.made_for
    assert Adore(model, again, **SMALL).generate(tokens(LENGTH), 9) is not None
    assert adore_training.held(model, again, samples, 120, 8) == after
    same = adore_training.train(model, samples[:2], queries=16, epochs=1, state=8, rank=4)
    twin = adore_training.train(model, samples[:2], queries=16, epochs=1, state=8, rank=4)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), twin.parameters()))
    assert model.config._attn_implementation == "sdpa"
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_named(model, controller, tmp_path):
    Bad = tokensparse.InvalidArgument
    with pytest.raises(Bad, match="controller: must be the model's own, was made for"):
        Adore(make(vocab_size=99), controller)
    twin = make()
    with torch.no_grad():
        twin.get_input_embeddings().weight.mul_(1.5)
    with pytest.raises(Bad, match="same shape with other embeddings"):
        Adore(twin, controller)
    with pytest.raises(tokensparse.Unsupported, match="must attend to the whole prompt"):
        Adore(make("Mistral", sliding_window=32), controller)
    with pytest.raises(Bad, match="cache: must hold the 2 first and 8 last tokens, is 9"):
        Adore(model, controller, **{**SMALL, "cache": 9})
    with pytest.raises(Bad, match="recent at least 1, are 5, 2, 0"):
        Adore(model, controller, **{**SMALL, "recent": 0})
    small = Adore(model, controller, **SMALL)
    with pytest.raises(Bad, match="max_new_tokens: must be at least 1"):
        small.generate(tokens(), 0)
    with pytest.raises(Bad, match="input_ids: must be"):
        small.generate(tokens(rows=2))
    with pytest.raises(Bad, match="samples: must have at least 544 tokens"):
        adore_training.train(model, [tokens(100)[0]])
    with pytest.raises(Bad, match="samples: must be one or more"):
        adore_training.train(model, [])
    path = tmp_path / "c.safetensors"
    with pytest.raises(Bad, match="cannot be read"):
        Controller.load(path)
    path.write_bytes(b"no")
    with pytest.raises(Bad, match="cannot be read"):
        Controller.load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(path))
    with pytest.raises(Bad, match='format must be "tokensparse controller 1"'):
        Controller.load(path)
    save_file({"a": torch.zeros(1)}, str(path), metadata={"format": adore.FORMAT})
    with pytest.raises(Bad, match="controller .*: 'sizes'"):
        Controller.load(path)
