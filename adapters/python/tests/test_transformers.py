# SPDX-License-Identifier: MIT
"""Hugging Face transformers with tiny random models: every way a prompt reaches attention."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tokensparse
import tokensparse._stock
import tokensparse.transformers as ts

LENGTH = 200


def make(kind="Qwen2", model_class=None, config_class=None, **changes):
    """A random model whose attention is far from uniform: large initial weights."""
    torch.manual_seed(1)
    shape = dict(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = getattr(transformers, config_class or f"{kind}Config")(**{**shape, **changes})
    model = getattr(transformers, model_class or f"{kind}ForCausalLM")(config).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def short_calls_are_ours(monkeypatch):
    monkeypatch.setattr(ts, "_serve_pairs", lambda host: 0)


def tokens(length=LENGTH, rows=1, seed=3):
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def both(model, run):
    """What `run` returns with sdpa and with tokensparse, and the report of the latter."""
    model.set_attn_implementation("sdpa")
    expected = run()
    model.set_attn_implementation("tokensparse")
    ts.report(model, reset=True)
    found = run()
    return found, expected, ts.report(model, reset=True)


@pytest.fixture(scope="module")
def floor(model):
    """How far two stock kernels are apart: eager against sdpa."""
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        sdpa = model(tokens()).logits
        model.set_attn_implementation("eager")
        apart = (model(tokens()).logits - sdpa).abs().max().item()
    assert 0 < apart < 1e-2
    return apart


def close(found, expected, floor):
    apart = (found - expected).abs().max().item()
    assert apart <= 3 * floor, f"logits are {apart:g} apart, two stock kernels {floor:g}"


def test_whole_prompt(model, floor):
    found, expected, report = both(model, lambda: model(tokens()).logits)
    close(found, expected, floor)
    assert [r.layer for r in report] == [0, 1, 2, 3]
    assert all(r.served == 1 and r.kept_share == 1 and not r.stock for r in report)


def test_bfloat16_is_as_good_as_stock(model):
    model.set_attn_implementation("sdpa")
    exact = model(tokens()).logits
    half = make().bfloat16()
    found, stock, report = both(half, lambda: half(tokens()).logits.float())
    assert report[0].served == 1
    ours, theirs = (found - exact).square().mean(), (stock - exact).square().mean()
    assert ours <= 1.5 * theirs


@pytest.mark.parametrize("pads", [0, 9])
def test_exact_calls_of_a_few_rows_are_stock(model, monkeypatch, pads):
    monkeypatch.setattr(ts, "_serve_pairs", tokensparse._environment.serve_pairs)
    mask = torch.ones(1, 127, dtype=torch.long)
    mask[:, :pads] = 0
    run = lambda length: model(tokens(length), attention_mask=mask[:, :length]).logits[:, pads:]  # noqa: E731
    found, expected, report = both(model, lambda: run(127))
    assert torch.equal(found, expected)  # the same code
    few = tokensparse._report.SMALL
    assert [(r.served, r.stock, r.kept_share) for r in report] == [(0, {few: 1}, 1)] * 4
    # From 128 rows on 128 keys they are ours, and whatever TOKENSPARSE_SERVE_ROWS says is.
    _, _, report = both(model, lambda: model(tokens(128)).logits)
    assert [r.served for r in report] == [1] * 4
    monkeypatch.setenv("TOKENSPARSE_SERVE_ROWS", "64")
    _, _, report = both(model, lambda: run(127))
    assert [r.served for r in report] == [1] * 4
    # So are sparse ones of any length, in the layers that may be.
    monkeypatch.delenv("TOKENSPARSE_SERVE_ROWS")
    ts.configure(model, layers="1-2", keep=0.5, min_keys=0, min_rows=2, min_tokens=16, window=16)
    try:
        _, _, report = both(model, lambda: run(127))
    finally:
        ts.configure(model, ts.Setting(layers="none"))
    assert [r.sparse_calls for r in report] == [0, 1, 1, 0]


def test_few_rows_on_a_cache_are_stock_under_one_mask(model, monkeypatch):
    monkeypatch.setattr(ts, "_serve_pairs", tokensparse._environment.serve_pairs)
    made = []
    dense = tokensparse._stock.dense_mask
    monkeypatch.setattr(tokensparse._stock, "dense_mask", lambda *x: made.append(x) or dense(*x))

    def run():
        cache = transformers.DynamicCache(config=model.config)
        return torch.cat([model(c, past_key_values=cache).logits for c in tokens(128).split(64, 1)], 1)

    found, expected, report = both(model, run)
    assert torch.equal(found, expected) and len(made) == 1
    assert report[0].stock == {tokensparse._report.SMALL: 2}


def test_chunks_through_a_cache(model, floor):
    def run():
        cache = transformers.DynamicCache(config=model.config)
        parts = [model(c, past_key_values=cache).logits for c in tokens().split(90, 1)]
        return torch.cat(parts, 1)

    found, expected, report = both(model, run)
    close(found, expected, floor)
    # 90 + 90 + 20: the last chunk is a short call and stays with the stock kernel.
    assert report[0].served == 2 and sum(report[0].stock.values()) == 1


def test_reused_prefix(model, floor):
    def run():
        cache = transformers.DynamicCache(config=model.config)
        model(tokens()[:, :120], past_key_values=cache)
        return model(tokens()[:, 120:], past_key_values=cache).logits

    found, expected, report = both(model, run)
    close(found, expected, floor)
    assert report[0].served == 2


@pytest.mark.parametrize("first", [LENGTH, 110])
def test_static_cache(model, floor, first):
    def run():
        cache = transformers.StaticCache(config=model.config, max_cache_len=256)
        parts = [tokens()[:, :first], tokens()[:, first:]]
        return torch.cat([model(p, past_key_values=cache).logits for p in parts if p.numel()], 1)

    found, expected, report = both(model, run)
    close(found, expected, floor)
    assert report[0].served == (1 if first == LENGTH else 2) and not report[0].stock


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(model, floor, side):
    ids, mask = tokens(rows=3), torch.ones(3, LENGTH, dtype=torch.long)
    for row, pads in enumerate((0, 70, 150)):
        padding = slice(0, pads) if side == "left" else slice(LENGTH - pads, LENGTH)
        ids[row, padding], mask[row, padding] = 0, 0
    found, expected, report = both(model, lambda: model(ids, attention_mask=mask).logits)
    close(found[mask.bool()], expected[mask.bool()], floor)
    assert found.isfinite().all()
    assert report[0].served == 3 and report[0].query_tokens == 3 * LENGTH - 220


def test_left_padded_chunks(model, floor):
    ids, mask = tokens(rows=2), torch.ones(2, LENGTH, dtype=torch.long)
    ids[0, :130], mask[0, :130] = 0, 0  # the first chunk of row 0 is all padding

    def run():
        cache = transformers.DynamicCache(config=model.config)
        parts = []
        for low, high in ((0, 100), (100, LENGTH)):
            part = model(ids[:, low:high], attention_mask=mask[:, :high], past_key_values=cache)
            parts.append(part.logits)
        return torch.cat(parts, 1)

    found, expected, _ = both(model, run)
    close(found[mask.bool()], expected[mask.bool()], floor)


@pytest.mark.parametrize(
    "options",
    [
        dict(do_sample=False),
        dict(do_sample=False, prefill_chunk_size=80),
        dict(do_sample=False, num_beams=3),
        dict(do_sample=True, top_k=20),
        dict(do_sample=False, cache_implementation="static"),
    ],
    ids=["greedy", "chunked", "beams", "sampled", "static"],
)
def test_generate(model, options):
    ids, mask = tokens(rows=2), torch.ones(2, LENGTH, dtype=torch.long)
    ids[0, :40], mask[0, :40] = 0, 0

    def run():
        torch.manual_seed(5)
        return model.generate(ids, attention_mask=mask, max_new_tokens=6, **options)

    found, expected, report = both(model, run)
    assert torch.equal(found, expected)
    assert report[0].served >= 2
    assert report[0].stock["decode"] >= 5


@pytest.mark.parametrize(
    "kind, changes, served",
    [
        ("Mistral", dict(sliding_window=64), [0, 0, 0, 0]),
        (
            "Qwen2",
            dict(
                sliding_window=64,
                use_sliding_window=True,
                layer_types=["sliding_attention", "full_attention"] * 2,
            ),
            [0, 1, 0, 1],
        ),
        ("Gemma2", dict(sliding_window=64, head_dim=16), [0, 0, 0, 0]),
    ],
    ids=["all sliding", "half sliding", "sliding and soft-capped"],
)
def test_layers_left_to_the_stock_kernel(kind, changes, served):
    special = make(kind, **changes)
    stock = "eager" if kind == "Gemma2" else "sdpa"  # sdpa leaves soft capping out
    special.set_attn_implementation(stock)
    cache = transformers.DynamicCache(config=special.config)
    expected = [special(tokens()).logits, special(tokens(), past_key_values=cache).logits]
    special.set_attn_implementation("tokensparse")
    cache = transformers.DynamicCache(config=special.config)
    found = [special(tokens()).logits, special(tokens(), past_key_values=cache).logits]
    for a, b in zip(found, expected):
        assert (a - b).abs().max() < 1e-3
    report = ts.report(special)
    assert [r.served for r in report] == [2 * n for n in served]
    assert all(sum(r.stock.values()) == 2 for r, n in zip(report, served) if not n)


def test_masks_that_are_not_plain_causal(model):
    holes = torch.ones(1, LENGTH, dtype=torch.long)
    holes[0, 50:60] = 0
    full = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    for mask in (holes, full):
        found, expected, report = both(
            model, lambda m=mask: model(tokens(), attention_mask=m).logits
        )
        assert torch.equal(found, expected)
        assert report[0].served == 0 and report[0].stock


def test_training_stays_with_the_stock_kernel(model):
    model.set_attn_implementation("tokensparse")
    with torch.enable_grad():
        model(tokens(), labels=tokens()).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    model.zero_grad()
    assert ts.report(model, reset=True)[0].stock == {"gradients are wanted": 1}


def flash(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """What flash-attn is to transformers: no mask or a mask of keys, the last query at the last key."""
    assert module.config._attn_implementation == "flash_of_this_test" and kwargs["is_causal"] is None
    assert attention_mask is None or attention_mask.shape == (len(key), key.shape[2])
    flash.calls.append((module.layer_idx, attention_mask is not None))
    behind = key.shape[2] - query.shape[2]
    seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(behind)[None, None]
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None]
        seen = seen | torch.eye(query.shape[2], dtype=torch.bool).logical_and(~seen.any(-1)[..., None])
    return tokensparse._stock.sdpa_attention_forward(
        module, query, key, value, seen, dropout=dropout, scaling=scaling
    )


def test_exact_layers_can_be_the_stock_kernels_alone(floor, monkeypatch):
    transformers.AttentionInterface.register("flash_of_this_test", flash)
    model = make()
    other = 'an attention implementation of transformers, got "flash"'
    with pytest.raises(tokensparse.InvalidArgument, match=other):
        ts.configure(model, stock="flash")
    # Exact: not a call is ours, and with sdpa every bit is sdpa's.
    ts.configure(model, layers="none", stock="sdpa")
    found, expected, report = both(model, lambda: model(tokens()).logits)
    assert torch.equal(found, expected)
    assert [(r.served, r.stock) for r in report] == [(0, {"exact layer": 1})] * 4
    assert report.kept_share_of_all == 1
    flash.calls = []
    ts.configure(model, layers="none", stock="flash_of_this_test")
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :30] = 0
    for run in (
        lambda: model(tokens()).logits,
        lambda: model(tokens(rows=2), attention_mask=mask).logits[mask.bool()],
        lambda: model.generate(tokens(), max_new_tokens=4, do_sample=False).float(),
        lambda: model.generate(
            tokens(), max_new_tokens=4, do_sample=False, cache_implementation="static"
        ).float(),
    ):
        found, expected, report = both(model, run)
        close(found, expected, floor)
        assert not sum(r.served for r in report)
    assert {padded for _, padded in flash.calls} == {False, True}
    # Sparse: the layers that the setting names are ours, prompts that are too short are not.
    flash.calls = []
    ts.configure(model, layers="1-2", keep=0.5, min_keys=0, min_rows=2, min_tokens=16)
    model(tokens())
    assert [layer for layer, _ in flash.calls] == [0, 3]
    assert [r.served for r in ts.report(model)] == [0, 1, 1, 0]
    ts.configure(model, min_keys=LENGTH + 1)
    model(tokens())
    assert ts.report(model)[1].stock == {"too short for sparse layers to gain": 1}
    # Nor are those that the library would attend to exactly, whatever was chosen.
    ts.configure(model, min_keys=0)
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(ts.Setting, "when", "pays")
        patch.setattr(tokensparse.Context, "pays", lambda context, *shape: asked.append(shape))
        model(tokens())
    assert len(asked) == 1 and asked[0][:2] == (LENGTH, LENGTH)  # once for all layers
    assert ts.report(model)[1].stock == {"too short for sparse layers to gain": 1}
    ts.configure(model, stock="tokensparse")
    model(tokens())
    assert [r.served for r in ts.report(model)] == [1, 1, 1, 1]


def test_what_a_backend_cannot_serve_stays_with_the_stock_kernel(model, monkeypatch):
    def refuse(*args):
        raise tokensparse.Unsupported("head dim 64: not on this backend")

    monkeypatch.setattr(tokensparse.methods, "attend", refuse)
    found, expected, report = both(model, lambda: model(tokens()).logits)
    assert torch.equal(found, expected)
    assert report[0].stock == {"head dim 64: not on this backend": 1}


def test_the_layers_of_a_forward_share_an_exact_call(model, monkeypatch):
    made = []

    class Counted(tokensparse.methods.ExactCall):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(tokensparse.methods, "ExactCall", Counted)
    both(model, lambda: model(tokens(rows=2)))
    assert len(made) == 2  # a row of the batch each
    # What it was filled in for is what it serves: other shapes, strides or types get their own.
    made.clear()
    state = tokensparse.methods.State(ts.Setting(), False, 4, "f32", None)
    normal = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(len(made)))  # noqa: E731
    for q in (normal(9, 4, 16), normal(9, 4, 16), normal(4, 9, 16).transpose(0, 1), normal(5, 4, 16)):
        for x in (q, q.bfloat16()):
            k, out = normal(12, 2, 16).to(x.dtype), torch.empty(x.shape, dtype=x.dtype)
            tokensparse.methods.attend(tokensparse.methods.Dense(), x, k, k, out, state)
            assert torch.equal(out, tokensparse.prefill(x, k, k, coverage=0))
    assert len(made) == 8
    for _ in range(3):
        tokensparse.methods.attend(tokensparse.methods.Dense(), x, k, k, out, state)
    assert len(made) == 8


def test_compiled_forward(model, floor):
    found, expected, _ = both(
        model, lambda: torch.compile(model, backend="eager", dynamic=False)(tokens()).logits
    )
    close(found, expected, floor)
