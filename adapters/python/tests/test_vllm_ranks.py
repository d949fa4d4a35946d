# SPDX-License-Identifier: MIT
"""vLLM with two tensor-parallel ranks on the CPU (gloo)."""

import pytest

pytest.importorskip("vllm")

from vllm_common import SPARSE, engines, model, prompts  # noqa: F401  model is a fixture

RANKS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def test_two_ranks_equal_one(model, tmp_path_factory):  # noqa: F811
    # With a fixed share to keep, the sets do not depend on how the heads are spread. One prompt at
    # a time: else the moment a prompt arrives decides its chunks.
    keep = {"TOKENSPARSE_KEEP": "0.5", **SPARSE}
    rounds = [[prompt] for prompts_of_round in prompts() for prompt in prompts_of_round]
    requests = {
        "one": (keep, {"rounds": rounds}),
        "two": ({**keep, **RANKS}, {"rounds": rounds, "ranks": 2}),
    }
    runs = engines(model, tmp_path_factory, requests)
    one, two = runs["one"][0], runs["two"][0]
    assert len(two["reports"]) == 2
    for rank in two["reports"]:
        shares = [layer["kept_share"] for layer in rank]
        assert shares == [layer["kept_share"] for layer in one["reports"][0]]
    # The ranks' sums are rounded in another order, which may swap two tokens at the edge of a set.
    pairs = list(zip(one["outputs"], two["outputs"]))
    assert sum(a == b for a, b in pairs) >= 0.8 * len(pairs), pairs


def test_every_rank_counts_for_itself(model, tmp_path_factory):  # noqa: F811
    # With a coverage each rank decides with its own heads; nobody waits for anybody.
    coverage = {"TOKENSPARSE_COVERAGE": "0.2", **SPARSE, **RANKS}
    runs = engines(model, tmp_path_factory, {"two": (coverage, {"ranks": 2})})
    first, second = runs["two"][0]["reports"]
    for layer in (1, 2):
        assert first[layer]["sparse"] and second[layer]["sparse"]
        for rank in (first, second):
            assert 0.1 < rank[layer]["kept_share"] < 1
    assert first[1]["kept_share"] != second[1]["kept_share"]
