# SPDX-License-Identifier: MIT
"""Options of the adapters: defaults, dictionaries, the environment, a profile."""

import json

import pytest

import tokensparse
from tokensparse.options import Options, default_backend, threads_from_environment


def test_defaults_are_exact():
    assert not any(Options().is_sparse(layer, 24) for layer in range(24))
    assert Options().asdict() == {}
    assert Options().prefill_arguments(True, "float32")["coverage"] == 0


def test_layers():
    assert Options(sparse_layers="7-9, 18").sparse_layers == (7, 8, 9, 18)
    every = Options(coverage=0.01)
    assert [every.is_sparse(i, 4) for i in range(4)] == [False, True, True, False]
    listed = Options(keep=0.5, sparse_layers=[0])
    assert [listed.is_sparse(i, 2) for i in range(2)] == [True, False]
    assert listed.prefill_arguments(False, "float32") == {"precision": "f32", "coverage": 0.0}
    assert listed.prefill_arguments(True, "torch.bfloat16")["precision"] == "bf16"


def test_what_is_long_enough():
    options = Options(window=64)
    assert options.is_long_enough(512, 4096)
    assert not options.is_long_enough(511, 4096) and not options.is_long_enough(512, 4095)
    assert Options(window=64, min_keys=0).is_long_enough(65, 65)


def test_round_trip_through_a_model_config():
    options = Options(coverage=0.02, share="kv_group", sparse_layers=(3, 4))
    stored = json.loads(json.dumps(options.asdict()))
    assert stored == {"coverage": 0.02, "share": "kv_group", "sparse_layers": [3, 4]}
    assert Options.make(stored) == options and Options.make(options) is options


def test_environment(tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"sparse_layers": [7, 8], "delta": 0.5}))
    found = Options.from_environment(
        {"TOKENSPARSE_PROFILE": str(profile), "TOKENSPARSE_COVERAGE": "0.01", "PATH": "/bin"}
    )
    assert found == Options(coverage=0.01, sparse_layers=(7, 8))
    found = Options.from_environment(
        {"TOKENSPARSE_PROFILE": str(profile), "TOKENSPARSE_SPARSE_LAYERS": "1-2"}
    )
    assert found.sparse_layers == (1, 2)


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"TOKENSPARSE_COVERAGE": "lots"}, "TOKENSPARSE_COVERAGE: must be a number, is 'lots'"),
        ({"TOKENSPARSE_WINDOW": "1.5"}, "TOKENSPARSE_WINDOW: must be a whole number, is '1.5'"),
        ({"TOKENSPARSE_MIN_KEYS": "-1"}, "min_keys: must be >= 0, is -1"),
        ({"TOKENSPARSE_WINDOW": "0"}, "window: must be >= 1, is 0"),
        ({"TOKENSPARSE_SPARSE_LAYERS": "a"}, "TOKENSPARSE_SPARSE_LAYERS: must look like 7-15,18"),
        ({"TOKENSPARSE_PROFILE": "/nowhere"}, "TOKENSPARSE_PROFILE: must be a JSON file .*nowhere"),
        ({"TOKENSPARSE_SHARE": "all"}, "share: must be one of head, kv_group, layer, is 'all'"),
    ],
)
def test_bad_environment(environment, message):
    with pytest.raises(tokensparse.InvalidArgument, match=message):
        Options.from_environment(environment)


def test_bad_options():
    with pytest.raises(tokensparse.InvalidArgument, match="coverge: no such option; there are: ba"):
        Options.make({"coverge": 0.1})
    with pytest.raises(tokensparse.InvalidArgument, match=r"keep: must be in \(0, 1\] or None"):
        Options(keep=0.0)


def test_defaults_of_host_arrays(monkeypatch):
    monkeypatch.setenv("TOKENSPARSE_BACKEND", "gpu")
    with pytest.raises(tokensparse.InvalidArgument, match="TOKENSPARSE_BACKEND: must be cpu or re"):
        default_backend()
    monkeypatch.setenv("TOKENSPARSE_THREADS", "3")
    assert threads_from_environment() == 3
