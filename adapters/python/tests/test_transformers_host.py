# SPDX-License-Identifier: MIT
"""What the adapter costs the host in transformers where the stock kernel attends: nothing a layer."""

import gc
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import modeling_flash_attention_utils as flash

import tokensparse._attached as attached
import tokensparse.transformers as ts

LENGTH = 200
FLASH = "flash_attention_3"


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Functions in flash-attn's place, under transformers' own code around them; a list of their calls."""
    calls = []

    def whole(q, k, v, softmax_scale=None, causal=False):
        assert causal
        calls.append("whole")
        return q

    def varlen(
        q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=0, max_seqlen_k=0,
        softmax_scale=None, causal=False,
    ):  # fmt: skip
        calls.append(cu_seqlens_q.tolist())
        return q

    monkeypatch.setattr(flash, "_loaded_implementation", FLASH)
    monkeypatch.setattr(flash, "_flash_fn", whole)
    monkeypatch.setattr(flash, "_flash_varlen_fn", varlen)
    monkeypatch.setattr(flash, "_unpad_fn", flash._unpad_input)
    monkeypatch.setattr(flash, "_pad_fn", flash._pad_input)
    made = flash._lazy_define_process_function(varlen)
    monkeypatch.setattr(flash, "_process_flash_kwargs_fn", made)
    return calls


def make(layers=4):
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return transformers.Qwen2ForCausalLM(config).eval().bfloat16()


def tokens(length=LENGTH):
    return torch.randint(1, 97, (1, length), generator=torch.Generator().manual_seed(3))


def use(model, implementation, stock, **changes):
    """As set_attn_implementation(), which looks whether flash-attn is there."""
    model.config._attn_implementation = ts.NAME
    ts.configure(model, ts.Setting(), stock=stock, **changes)
    model.config._attn_implementation = implementation


def python_calls(function):
    count = 0

    def watch(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def calls_of(stock, implementation, **changes):
    """Python calls of a layer and of the rest of a forward: of the first prompt after `configure`, of
    another, and of a decode step."""
    counts = []
    for layers in (4, 12):
        model = make(layers)
        use(model, implementation, stock, **changes)
        model(tokens())  # whatever a process does once
        use(model, implementation, stock, **changes)
        cache = transformers.DynamicCache(config=model.config)
        prompt = lambda: model(tokens(), past_key_values=cache)  # noqa: B023,E731
        first, _ = python_calls(prompt), cache.reset()
        cache = transformers.DynamicCache(config=model.config)
        later = python_calls(prompt)
        counts.append((first, later, python_calls(lambda: model(tokens(1), past_key_values=cache))))  # noqa: B023
    slopes = [(many - few) / 8 for few, many in zip(*counts)]
    return slopes, [few - 4 * slope for few, slope in zip(counts[0], slopes)]


SETTINGS = {
    "exact": dict(layers="none"),
    "too short": dict(min_keys=LENGTH + 1, min_rows=2),
    "too short, by the library": dict(min_keys=0, min_rows=2, min_tokens=16),
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_layer_costs_what_the_stock_kernels_costs(changes, monkeypatch):
    monkeypatch.setattr(ts.Setting, "when", "pays")
    monkeypatch.setattr("tokensparse.Context.pays", lambda context, *shape: False)
    stock, rest_of_stock = calls_of(FLASH, FLASH)
    ours, rest = calls_of(FLASH, ts.NAME, **changes)
    assert all(mine <= theirs for mine, theirs in zip(ours, stock)), (ours, stock)
    # Once a forward: the mask, the first layer's look, and that of the first the setting names.
    assert all(mine - theirs <= 150 for mine, theirs in zip(rest, rest_of_stock)), (rest, rest_of_stock)


def test_beside_sdpa_a_layer_costs_a_handful_of_python_calls():
    stock, _ = calls_of("sdpa", "sdpa")
    ours, _ = calls_of("sdpa", ts.NAME, layers="none")
    assert all(mine <= theirs + 6 for mine, theirs in zip(ours, stock)), (ours, stock)


def test_the_first_sparse_prompt_costs_what_others_cost():
    model = make(12)
    sparse = dict(keep=0.5, min_keys=0, min_rows=2, min_tokens=16)
    use(model, ts.NAME, FLASH, **sparse)
    model(tokens())
    use(model, ts.NAME, FLASH, **sparse)
    first, later = (python_calls(lambda: model(tokens())) for _ in range(2))
    # The setting is looked at once more, as for a model whose config came with one.
    assert first <= later + 300, (first, later)
    assert sum(r.sparse_calls for r in ts.report(model)) == 20  # all layers but two, twice


def test_positions_are_looked_at_once_a_forward(kernels, monkeypatch):
    looked = []
    packed = flash._is_packed_sequence

    def look(positions, batch_size):
        if positions is not None:
            looked.append(positions)
        return packed(positions, batch_size)

    monkeypatch.setattr(flash, "_is_packed_sequence", look)
    model = make()
    plain = torch.arange(LENGTH)[None]
    two = torch.cat([plain[:, :120], plain[:, :80]], 1)  # one sequence behind the other

    def run(positions):
        looked.clear(), kernels.clear()
        cache = transformers.DynamicCache(config=model.config)
        found = model(tokens(), position_ids=positions, past_key_values=cache).logits
        return found, len(looked), list(kernels)

    use(model, FLASH, FLASH)
    expected = [run(plain), run(two)]
    assert [looks for _, looks, _ in expected] == [4, 4]
    assert expected[1][2] == [[0, 120, LENGTH]] * 4
    use(model, ts.NAME, FLASH, layers="none")
    found = [run(plain), run(two)]
    assert [looks for _, looks, _ in found] == [1, 5]
    for (mine, _, how), (theirs, _, as_stock) in zip(found, expected):
        assert torch.equal(mine, theirs) and how == as_stock


def test_a_layer_is_counted_whatever_becomes_of_the_forward():
    model = make()
    use(model, ts.NAME, FLASH, layers="none")
    reports = []
    third = model.model.layers[2]
    hook = third.register_forward_pre_hook(lambda *_: reports.append(ts.report(model).asdict()))
    model(tokens())
    hook.remove()
    assert [layer["layer"] for layer in reports[0]] == [0, 1]  # in the midst of it
    assert [r.stock for r in ts.report(model)] == [{"exact layer": 1}] * 4
    assert ts.report(model, reset=True).kept_share_of_all == 1

    def fail(*_):
        raise RuntimeError("on purpose")

    hook = third.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(tokens())
    hook.remove()
    assert [(r.layer, r.stock) for r in ts.report(model)] == [
        (layer, {"exact layer": 1}) for layer in (0, 1)
    ]


def test_what_a_config_says_meanwhile_is_followed(kernels):
    model = make()
    use(model, ts.NAME, FLASH, layers="none")
    model(tokens())
    sparse = ts.Setting(layers=(1, 2), keep=0.5, min_keys=0, min_rows=2, min_tokens=16)
    model.config.tokensparse = sparse.asdict()  # as from_pretrained() leaves it there
    model(tokens())
    assert kernels == ["whole"] * 6
    assert [r.sparse_calls for r in ts.report(model)] == [0, 1, 1, 0]


def test_layers_go_with_their_model():
    gc.collect()
    before = len(attached.layers)
    model = make()
    use(model, ts.NAME, FLASH, layers="none")
    model(tokens())
    assert len(attached.layers) == before + 4
    del model
    gc.collect()
    assert len(attached.layers) == before
