# SPDX-License-Identifier: MIT
import numpy as np
import pytest

from lab import results, stats, table
from lab.__main__ import _plan
from lab.engines import EngineError

SUBJECT = {"model": "m", "engine": "e", "device": "d"}


def row(prompt, setting, loss, exact=1.0, task="t"):
    return {"prompt": prompt, "task": task, "length": 4096, "setting": setting, "loss": loss,
            "exact": exact, "score": None, "seconds": 1.0 if setting == "dense" else 0.5,
            "pairs": 1.0 if setting == "dense" else 0.25, "kept": 1.0}  # fmt: skip


def test_a_run_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "r.jsonl"
    store = results.Store(path, SUBJECT)
    store.add(row("t/1", "dense", 0.1))
    store.close()
    with path.open("a") as file:
        file.write('{"prompt": "t/2", "sett')  # as if the power had gone
    store = results.Store(path, SUBJECT)
    assert store.has("t/1", "dense") and not store.has("t/2", "dense")
    store.add(row("t/2", "dense", 0.2))
    store.close()
    header, rows, cut = results.read(path)
    assert header["model"] == "m" and [r["prompt"] for r in rows] == ["t/1", "t/2"] and not cut


@pytest.mark.parametrize("key", SUBJECT)
def test_results_of_something_else_are_refused(tmp_path, key):
    path = tmp_path / "r.jsonl"
    results.Store(path, SUBJECT).close()
    with pytest.raises(results.ResultsError, match=f"holds results of {key} '{SUBJECT[key]}'"):
        results.Store(path, {**SUBJECT, key: "other"})


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "must begin"), ("{}\n", "must begin"), ('{"format"\n', "r.jsonl:1: not JSON")],
)
def test_a_file_that_is_not_of_the_lab_is_refused(tmp_path, text, message):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(results.ResultsError, match=message):
        results.read(path)


def test_the_interval_covers_what_is_true():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        groups = [rng.normal(0.3, 1, 40), rng.normal(0.1, 1, 80)]
        found = stats.paired(groups)
        covered += found.low <= 0.2 <= found.high
    assert 88 <= covered <= 100


def test_no_difference_has_no_interval_and_a_large_one_is_significant():
    same = stats.paired([[0.0] * 20])
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    far = stats.paired([list(np.linspace(0.9, 1.1, 20))])
    assert far.low > 0.9 and far.p <= 2 / stats.RESAMPLES
    assert stats.paired([[], []]) is None


def test_holm_is_holms():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_a_table_compares_the_same_prompts_alone():
    rows = [row(f"t/{i}", "dense", 0.1 * i) for i in range(10)]
    rows += [row(f"t/{i}", "sparse", 0.1 * i + 0.05, exact=0.0) for i in range(5)]
    rows += [row("t/99", "sparse", 100.0)]  # dense was not asked: no pair
    dense, sparse = table.lines(rows)
    assert dense.setting == "dense" and dense.loss is None and dense.n == 10
    assert sparse.loss.n == 5 and sparse.loss.mean == pytest.approx(0.05)
    assert sparse.points.mean == pytest.approx(-100) and sparse.seconds == 0.5
    text = table.markdown([dense, sparse], by_task=True)
    assert "+0.050 [+0.050, +0.050]" in text and "| time |" in text
    assert "time" not in table.markdown([dense, sparse], timed=False)


def test_prompts_that_are_not_the_same_are_not_compared():
    rows = [{**row("t/1", "dense", 0.1), "digest": "a"}, {**row("t/1", "sparse", 0.1), "digest": "b"}]
    with pytest.raises(results.ResultsError, match="t/1: sparse was asked another prompt than dense"):
        table.lines(rows)


def test_a_table_of_the_prompts_that_all_answered():
    rows = [row(f"t/{i}", name, 0.1) for name, n in (("dense", 9), ("a", 5), ("b", 3)) for i in range(n)]
    assert [line.n for line in table.lines(table.common(rows))] == [3, 3, 3]


def test_a_table_compares_at_equal_pairs():
    few, many, other = ((name, pairs) for name, pairs in (("few", 0.2), ("many", 0.6), ("other", 0.5)))
    rows = [{**row(f"t/{i}", name, loss + 0.01 * i), "pairs": pairs}
            for (name, pairs), loss in ((few, 0.9), (many, 0.1), (other, 0.4)) for i in range(4)]  # fmt: skip
    (line,) = table.between(rows, "few", "many")
    assert line.setting == "other" and line.n == 4
    assert line.loss.mean == pytest.approx(0.4 - (0.25 * 0.9 + 0.75 * 0.1))  # a quarter of the way back
    with pytest.raises(results.ResultsError, match="many and other compute the same pairs"):
        table.between([{**r, "pairs": 0.5} for r in rows], "many", "other")


def test_a_setting_that_tells_no_loss_stands_in_the_table():
    told = [row(f"t/{i}", "dense", 0.5) for i in range(4)]
    other = [{**row(f"t/{i}", "peer", None, exact=0.0), "pairs": None, "kept": None} for i in range(4)]
    dense, peer = table.lines(told + other + [row("t/0", "cheap", 0.5)])[::2]
    assert (peer.setting, peer.pairs, peer.loss, peer.p_loss) == ("peer", None, None, None)
    assert peer.points.mean == -100 and dense.by_task == {"t": (100, 0.5, None)}
    last = table.markdown([dense, peer], by_task=True, kept=True).splitlines()[-1]
    assert last == "| 4,096 | peer | 4 | - | - | 0.50 | - | - | -100.0 [-100.0, -100.0] | 0, - |"


def test_times_of_rows_that_were_asked_alone():
    rows = [row("t/1", name, 0.1) for name in ("dense", "a", "b")]
    alone = [{**row("t/9", "dense", 0.1), "seconds": 4.0, "decode": 20.0},
             {**row("t/9", "a", 0.1), "seconds": 1.0, "decode": 25.0, "held_bytes": 3 << 20}]  # fmt: skip
    made = table.timed(table.lines(rows), alone)
    assert [(line.setting, line.seconds) for line in made] == [("dense", 1.0), ("a", 0.25), ("b", None)]
    first, _, *lines = table.markdown(made, kept=True).split("\n")
    assert "| n | kept | pairs | time | first token, s | tokens/s | held MiB |" in first
    assert "| a | 1 | 1.000 | 0.250 | 0.25 | 1.000 | 25.0 | 3 |" in lines[1]
    assert "| b | 1 | 1.000 | 0.250 | - | - | - | - |" in lines[2]


def test_a_plan_names_each_setting_once(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"a": {"coverage": 0.1}, "b": {}, "a": {"coverage": 0.2}}')
    with pytest.raises(EngineError, match="must have a once"):
        _plan(path, None)
    for text, error in (("[1]", EngineError), ('{"a": 1}', EngineError), ("{", results.ResultsError)):
        path.write_text(text)
        with pytest.raises(error, match="plan.json: "):
            _plan(path, None)


def test_a_table_compares_with_any_setting():
    rows = [row(f"t/{i}", "a", 0.2) for i in range(4)] + [row(f"t/{i}", "b", 0.5) for i in range(3)]
    first, second = table.lines(rows, against="a")
    assert first.setting == "a" and first.loss is None and first.seconds == 1.0
    assert second.loss.n == 3 and second.loss.mean == pytest.approx(0.3)
