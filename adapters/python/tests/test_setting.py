# SPDX-License-Identifier: MIT
"""Settings: files, dictionaries, the environment, and which layers of a model they mean."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import tokensparse
from tokensparse import Setting
from tokensparse._environment import (
    default_backend,
    serve_rows,
    setting_from_environment,
    threads_from_environment,
)
from tokensparse._model import check_setting, numbers, sparse_layers, whole_prompt_layers
from tokensparse._patterns import blocks_text, make_blocks
from tokensparse._profile import Profile, choose_layers
from tokensparse._recommended import recommended
from tokensparse.setting import parse_layers, read_setting

FIXTURES = Path(__file__).parents[3] / "tests" / "fixtures" / "settings"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
LAYER_LISTS = json.loads((FIXTURES / "layer_lists.json").read_text())
BLOCK_TEXTS = json.loads((FIXTURES / "block_texts.json").read_text())


def model(num_layers=6, **changes):
    return SimpleNamespace(
        **{
            **dict(num_hidden_layers=num_layers, num_attention_heads=8, num_key_value_heads=2),
            **dict(hidden_size=256, layer_types=None, sliding_window=None),
            **changes,
        }
    )


def test_every_valid_file_is_expected():
    assert {path.name for path in FIXTURES.glob("valid_*")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_valid_files(name):
    found = read_setting(FIXTURES / name)
    assert bool(found.blocks) == ("blocks" in EXPECTED[name])
    for key, value in EXPECTED[name].items():
        seen = getattr(found, key)
        assert (list(seen) if isinstance(seen, tuple) else seen) == value, key


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("invalid_*")))
def test_invalid_files(name):
    key = name.removeprefix("invalid_").removesuffix(".json").split("-")[0]
    with pytest.raises(tokensparse.InvalidArgument) as error:
        read_setting(FIXTURES / name)
    file, sentence = str(error.value).split(f"{name}: ")
    assert key in sentence and str(FIXTURES) in file


@pytest.mark.parametrize("entry", LAYER_LISTS, ids=lambda entry: repr(entry["text"]))
def test_layers_as_text(entry):
    config = model(entry["num_layers"])

    def read():
        setting = Setting(layers=parse_layers(entry["text"], "layers"))
        check_setting(setting, config)
        return sorted(sparse_layers(setting, config))

    if entry["layers"] is not None:
        assert read() == entry["layers"]
    else:
        with pytest.raises(tokensparse.InvalidArgument, match="layers: must be "):
            read()


@pytest.mark.parametrize("entry", BLOCK_TEXTS, ids=lambda entry: repr(entry["text"]))
def test_blocks_as_text(entry):
    if "refused" not in entry:
        made = make_blocks(entry["text"])
        assert blocks_text(made) == entry["means"] and make_blocks(blocks_text(made)) == made
        assert make_blocks(made) == made
        return
    key = entry["refused"] if entry["refused"].isidentifier() else ""
    with pytest.raises(tokensparse.InvalidArgument, match=rf"blocks(\.{key})?: must be ") as error:
        make_blocks(entry["text"])
    assert key in str(error.value)


def test_blocks_in_a_setting(tmp_path):
    setting = Setting(blocks="xattention,xattention_threshold=0.8")
    assert setting.blocks == {"pattern": "xattention", "threshold": 0.8}
    assert Setting(blocks={"pattern": "xattention", "threshold": 0.9}).blocks == {
        "pattern": "xattention"
    }
    assert "coverage 0.1, blocks xattention,threshold=0.8" in str(setting)
    setting.save(tmp_path / "s.json")
    assert read_setting(tmp_path / "s.json") == setting
    alone = Setting(coverage=0, blocks="flash")
    assert alone.is_sparse and not alone.is_choosing and "every token, blocks flash" in str(alone)
    assert not alone.exact.is_sparse and not Setting(coverage=0, blocks="none").is_sparse
    assert setting.changed(blocks="none").blocks == {}
    with pytest.raises(tokensparse.InvalidArgument, match="blocks.share: must be no wider than sha"):
        Setting(blocks="pooled,share=layer")
    assert Setting(coverage=0, blocks="pooled,share=layer").blocks["share"] == "layer"
    found = setting_from_environment({"TOKENSPARSE_BLOCKS": "pooled,threshold=0.5"})
    assert found == Setting(blocks={"pattern": "pooled", "threshold": 0.5})


def test_files_that_are_not_there(tmp_path):
    assert Setting.make("built-in") == Setting()
    with pytest.raises(tokensparse.InvalidArgument, match="cannot read /nowhere"):
        Setting.make("/nowhere")
    with pytest.raises(tokensparse.InvalidArgument, match="cannot read"):
        Setting.make(tmp_path)
    with pytest.raises(tokensparse.InvalidArgument, match="cannot read 5"):
        Setting.make(5)


def test_round_trip(tmp_path):
    assert Setting().asdict() == {"format": "tokensparse setting 1"}
    setting = Setting(coverage=0.02, layers="3-4", name="x", model={"num_layers": 6})
    stored = json.loads(json.dumps(setting.asdict()))
    assert stored["layers"] == [3, 4] and "share" not in stored
    assert Setting.make(stored) == setting and Setting.make(setting) is setting
    setting.save(tmp_path / "s.json")
    assert read_setting(tmp_path / "s.json") == setting


def test_what_is_sparse():
    assert Setting().is_sparse and not Setting(layers="none").is_sparse
    assert not Setting(coverage=0).is_sparse and Setting(coverage=0, keep=0.5).is_sparse
    assert not Setting().exact.is_sparse
    assert Setting().is_long_enough(1024, 4096)
    assert not Setting().is_long_enough(1023, 4096) and not Setting().is_long_enough(1024, 4095)
    assert (Setting().when, Setting(min_keys=0).when) == ("pays", "always")
    assert Setting(precision="auto").products("torch.bfloat16") == "bf16"
    assert Setting(precision="f32").products("torch.bfloat16") == "f32"
    assert str(Setting().exact) == "exact attention" and "coverage 0.1" in str(Setting())


def test_long_calls_have_a_coverage_of_their_own():
    assert Setting().coverage_of(1 << 20) == 0.1
    setting = Setting(long_keys=100, long_coverage=0.05)
    assert (setting.coverage_of(99), setting.coverage_of(100)) == (0.1, 0.05)
    assert "coverage 0.1 (0.05 from 100 keys up)" in str(setting)


def test_layers_that_attend_to_the_whole_prompt():
    window = ["sliding_attention"] * 5 + ["full_attention"]
    gemma = model(12, layer_types=window * 2)
    assert whole_prompt_layers(gemma) == [5, 11]
    assert sparse_layers(Setting(), gemma) == {5}
    assert sparse_layers(Setting(layers="all"), gemma) == {5, 11}
    assert sparse_layers(Setting(layers="none"), gemma) == set()
    assert "layers 3 will never be sparse: sliding_att" in check_setting(Setting(layers=[3]), gemma)
    linear = model(4, layer_types=["linear_attention", "conv", "full_attention", "hybrid"])
    assert whole_prompt_layers(linear) == [2, 3]
    mistral = model(4, sliding_window=64)
    assert "no such layer" in check_setting(Setting(), mistral)
    assert sparse_layers(Setting(), model(6)) == {1, 2, 3, 4}
    assert numbers(model(6)) == dict(num_layers=6, num_heads=8, num_kv_heads=2, head_dim=32)


def test_a_setting_of_another_model():
    assert check_setting(Setting(model={"num_layers": 6, "name": "any"}), model()) == ""
    with pytest.raises(
        tokensparse.InvalidArgument, match="for a model with num_heads 12, .* has 8"
    ):
        check_setting(Setting(model={"num_heads": 12}), model())
    with pytest.raises(tokensparse.InvalidArgument, match="layers: must be below 6, .* are 6, 99"):
        check_setting(Setting(layers=[1, 6, 99]), model())


def test_profile(tmp_path):
    drift = [9.0, 0.5, 0.25, 0.125, 0.75, 2.0]
    assert choose_layers(drift, 0.5, list(range(6))) == (1, 2, 3)
    assert choose_layers(drift, 0.5, [1, 4]) == (1,) and choose_layers(drift, 1, [0, 5]) == ()
    Profile((1, 2), tuple(drift), 300, 0.5, {"num_layers": 6}).save(tmp_path / "p.json")
    found = setting_from_environment({"TOKENSPARSE_PROFILE": str(tmp_path / "p.json")})
    assert found.layers == (1, 2) and found.model == {"num_layers": 6} and found.is_sparse
    assert read_setting(tmp_path / "p.json").accuracy["drift"] == drift


def test_environment(tmp_path):
    assert not setting_from_environment({"TOKENSPARSE_SHARE": "head", "PATH": "/bin"}).is_sparse
    assert setting_from_environment({"TOKENSPARSE_COVERAGE": "0.1"}) == Setting()
    file = tmp_path / "s.json"
    Setting(coverage=0.2, layers=[4], band=9).save(file)
    found = setting_from_environment(
        {"TOKENSPARSE_SETTING": str(file), "TOKENSPARSE_LAYERS": "1-2, 4", "TOKENSPARSE_SINK": "8"}
    )
    assert found == Setting(coverage=0.2, layers=(1, 2, 4), band=9, sink=8)
    assert setting_from_environment({"TOKENSPARSE_SETTING": "built-in"}) == Setting()
    assert setting_from_environment({"TOKENSPARSE_SPARSE_LAYERS": "all"}) == Setting(layers="all")
    assert not setting_from_environment({"TOKENSPARSE_COVERAGE": "0"}).is_sparse
    with pytest.warns(tokensparse.TokensparseWarning, match="no setting named TOKENSPARSE_COVRAGE"):
        assert not setting_from_environment({"TOKENSPARSE_COVRAGE": "0.1"}).is_sparse


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("COVERAGE", "lots", "TOKENSPARSE_COVERAGE: must be a number, is 'lots'"),
        ("COVERAGE", "nan", r"TOKENSPARSE_COVERAGE: must be a number in \[0, 1\), is nan"),
        ("WINDOW", "1.5", "TOKENSPARSE_WINDOW: must be a whole number, is '1.5'"),
        ("MIN_KEYS", "-1", "TOKENSPARSE_MIN_KEYS: must be a whole number between 0 .*, is -1"),
        ("POOL", "4", "TOKENSPARSE_POOL: must be odd, is 4"),
        ("LAYERS", "9-5", "TOKENSPARSE_LAYERS: must be middle, all, none or layers like 1-22,25"),
        ("PROFILE", "/nowhere", "TOKENSPARSE_PROFILE: setting: cannot read /nowhere"),
        ("SETTING", "/nowhere", "TOKENSPARSE_SETTING: setting: cannot read /nowhere"),
        ("SHARE", "all", "TOKENSPARSE_SHARE: must be one of head, kv_group, layer, is 'all'"),
        ("BLOCKS", "all", r"TOKENSPARSE_BLOCKS.pattern: must be one of none, xattention, .* 'all'"),
        ("BLOCKS", "flash,tau=1", r"TOKENSPARSE_BLOCKS.tau: must be a parameter of flash .* is 1"),
        ("MIN_QUERY", "65", "TOKENSPARSE_MIN_QUERY: is now TOKENSPARSE_MIN_ROWS"),
    ],
)
def test_bad_environment(name, value, message):
    with pytest.raises(tokensparse.InvalidArgument, match=message):
        setting_from_environment({f"TOKENSPARSE_{name}": value})


def test_bad_keys():
    for changes, message in [
        (dict(coverge=0.1), "coverge: no such key; there are: accuracy, band, blocks, cov"),
        (dict(sparse_layers="1"), "sparse_layers: is now layers"),
        (dict(min_query=65), "min_query: is now min_rows"),
        (dict(keep=None), r"keep: must be a number in \[0, 1\], is None"),
        (dict(coverage=True), "coverage: must be a number"),
        (dict(layers=3), "layers: must be a list of layers"),
    ]:
        with pytest.raises(tokensparse.InvalidArgument, match=message):
            Setting.make(changes)


def test_what_else_the_environment_says(monkeypatch):
    monkeypatch.setenv("TOKENSPARSE_BACKEND", "gpu")
    with pytest.raises(tokensparse.InvalidArgument, match="TOKENSPARSE_BACKEND: must be cpu or re"):
        default_backend()
    monkeypatch.setenv("TOKENSPARSE_THREADS", "3")
    assert threads_from_environment() == 3 and serve_rows() == 64
    monkeypatch.setenv("TOKENSPARSE_SERVE_ROWS", "1")
    with pytest.raises(tokensparse.InvalidArgument, match="TOKENSPARSE_SERVE_ROWS: must be >= 2"):
        serve_rows()


CODER = dict(num_attention_heads=12, num_key_value_heads=2, hidden_size=1536)


def test_a_measured_setting_is_found_by_all_numbers_of_the_model():
    found = recommended(model(28, **CODER))
    assert found.name == "qwen2.5-coder-1.5b-instruct" and found.coverage == 0.1
    assert found.accuracy["by_length"]["16384"]["n"] >= 400
    assert "as in qwen2.5-coder-1.5b-instruct" in str(found)
    assert recommended(model(27, **CODER)) is None
    small = recommended(model(24, num_attention_heads=14, num_key_value_heads=2, hidden_size=896))
    assert small.name == "qwen2.5-coder-0.5b-instruct" and list(small.layers) == list(range(16, 23))
    gemma = model(18, num_attention_heads=4, num_key_value_heads=1, hidden_size=640, head_dim=256)
    found = recommended(gemma)
    assert (found.name, found.coverage, found.layers) == ("gemma-3-270m", 0.02, "all")
    environ = {"TOKENSPARSE_SETTING": "recommended"}
    assert setting_from_environment(environ, gemma).name == "gemma-3-270m"
    assert recommended(SimpleNamespace(num_hidden_layers=28)) is None  # too little is known


def test_the_environment_takes_what_was_measured_on_the_model():
    environ = {"TOKENSPARSE_SETTING": "recommended", "TOKENSPARSE_BAND": "128"}
    found = setting_from_environment(environ, model(28, **CODER))
    assert found.name == "qwen2.5-coder-1.5b-instruct" and found.band == 128
    other = setting_from_environment(environ, model(6))
    assert other == Setting(band=128) and other.is_sparse


def test_every_recommended_file_says_for_what_and_at_what_cost():
    files = sorted((Path(__file__).parents[3] / "settings").glob("*.json"))
    assert files
    for file in files:
        found = read_setting(file)
        assert set(found.model) == {"name", "num_layers", "num_heads", "num_kv_heads", "head_dim"}
        assert {"measured", "device", "tasks", "by_length", "table"} <= set(found.accuracy)
