# SPDX-License-Identifier: MIT
"""The transformers engine on a tiny random model: the library's method and its relatives."""
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokensparse")

from lab.engines import EngineError, hugging_face  # noqa: E402  torch may be missing
from lab.engines.transformers_engine import Engine  # noqa: E402
from lab.prompts import Prompt  # noqa: E402
from tokensparse.methods import sts  # noqa: E402
from tokensparse.methods.adore import Controller  # noqa: E402

VOTE = {
    "coverage": 0.2, "window": 32, "min_tokens": 32, "sink": 3, "band": 7, "min_keys": 0,
    "min_rows": 2,
}  # fmt: skip


def tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, 97, (count,), generator=generator).tolist())


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.25,
        attn_implementation="tokensparse",
    )  # fmt: skip
    made = Engine.__new__(Engine)  # a file with a tokenizer is what the constructor wants
    made._model = transformers.Qwen2ForCausalLM(config).eval()
    made._driver = hugging_face.Driver(made._model, None, 0, decoding=3)
    made._draft = made._model
    folder = tmp_path_factory.mktemp("files")
    made._head_map, made._controller = folder / "map.json", folder / "controller.safetensors"
    Controller.of(made._model, state=8, rank=4).save(made._controller)
    ids = torch.tensor([tokens(200, 7)])
    sts.calibrate(made._model, made._model, ids, top=16, window=32).save(made._head_map)
    return made


@pytest.fixture(scope="module")
def prompt():
    return Prompt("vt", 200, 0, tokens(200, 3), tokens(5, 4), ("x",), 5)


def test_dense_is_what_nothing_dropped_gives(engine, prompt):
    dense = engine.measure(prompt, {})
    assert dense.pairs == dense.kept == 1 and dense.exact in (0.0, 1.0)
    assert dense.more["pairs_by_layer"] == [1, 1, 1, 1]
    lazy = engine.measure(prompt, {"method": "lazyllm", "layers": [1], "keep": [1.0]})
    assert lazy.loss == pytest.approx(dense.loss, abs=1e-4)
    assert (lazy.pairs, lazy.kept, lazy.more["computed"]) == (1, 1, 1)
    for whole in ({"method": "adore", "cache": 300}, {"method": "sts", "coverage": 0, "decode": 300}):
        found = engine.measure(prompt, whole)
        assert found.loss == pytest.approx(dense.loss, abs=1e-4) and (found.pairs, found.kept) == (1, 1)
    assert dense.more["decode"] > 0 and found.more["decode"] > 0
    assert engine.measure(prompt, {}).loss == dense.loss


@pytest.mark.parametrize(
    "setting",
    [
        VOTE,
        {"method": "sts", **VOTE},
        {"method": "lazyllm", "layers": [0, 2], "keep": [0.5, 0.5], "window": 16},
    ],
)
def test_each_method_leaves_something_out(engine, prompt, setting):
    dense = engine.measure(prompt, {})
    found = engine.measure(prompt, setting)
    assert 0 < found.pairs < 1 and 0 < found.kept < 1
    assert found.loss != dense.loss and found.seconds > 0


@pytest.mark.parametrize(
    "setting",
    [
        {"method": "adore", "cache": 80, "rebuild": 4, "recent": 16},
        {"method": "sts", "coverage": 0, "layers": "all", "decode": 80, "watch": True},
    ],
)
def test_methods_of_decoding_read_the_prompt_exactly(engine, prompt, setting):
    dense = engine.measure(prompt, {})
    found = engine.measure(prompt, setting)
    assert found.pairs == 1 and abs(found.loss - dense.loss) > 1e-3
    if setting["method"] == "sts":
        assert 0 < found.more["held"] <= found.more["held_at_best"] < 1
    else:
        assert found.kept == pytest.approx(80 / 204)


def test_what_cannot_be_served_is_one_sentence(engine, prompt):
    with pytest.raises(EngineError, match="method: must be one of tsa, sts, lazyllm, adore, is 'magic'"):
        engine.measure(prompt, {"method": "magic"})
    with pytest.raises(EngineError, match="lazyllm: keep: must have one share"):
        engine.measure(prompt, {"method": "lazyllm", "layers": [1]})
    for method in ("adore", "lazyllm"):
        with pytest.raises(EngineError, match="size: must be one of"):
            engine.measure(prompt, {"method": method, "size": 3})
    controller, engine._controller = engine._controller, None
    try:
        with pytest.raises(EngineError, match="adore: needs --controller FILE"):
            engine.measure(prompt, {"method": "adore"})
    finally:
        engine._controller = controller
    draft, engine._draft = engine._draft, None
    try:
        with pytest.raises(EngineError, match="sts: needs --draft MODEL and --head-map FILE"):
            engine.measure(prompt, {"method": "sts"})
    finally:
        engine._draft = draft
