# SPDX-License-Identifier: MIT
import dataclasses
import json
import random
import sys
import types

import pytest

from lab import __main__ as program
from lab import recommend, results, table

MODEL = {"name": "m", "num_layers": 24, "num_heads": 14, "num_kv_heads": 2, "head_dim": 64}


class FakeModel:
    """Loses `slope` nats for each unit of coverage over `free`, and pays fewer pairs for more."""

    model = MODEL
    subject = {"engine": "fake", "device": "none"}

    def __init__(self, free, noise=0.01):
        self.free, self.noise, self.asked = free, noise, 0

    def ask(self, settings, n):
        rows = []
        for name, setting in {table.DENSE: {}, **settings}.items():
            for task in ("a", "b"):
                for i in range(n):
                    rng = random.Random(f"{name}/{task}/{i}")
                    coverage = setting.get("coverage", 0)
                    lost = max(0.0, coverage - self.free) * bool(setting)
                    band = setting.get("band", 256)
                    lost += 0.5 if band < 256 else 0.0
                    self.asked += 1
                    rows.append({"prompt": f"{task}/{i}", "task": task, "length": 8192, "setting": name,
                                 "loss": 0.1 + lost + rng.gauss(0, self.noise) * bool(setting),
                                 "exact": 1.0, "score": None, "seconds": 1.0,
                                 "pairs": (1 - coverage) * (0.9 if band < 256 else 1.0)})  # fmt: skip
        return recommend.merged(rows, settings)


def search(model, **options):
    said = []
    return recommend.Search(model.ask, say=said.append, **options), said


def test_the_cheapest_setting_within_the_limit_is_found():
    model = FakeModel(free=0.15)
    finder, said = search(model)
    name, setting = finder.run()
    assert (name, setting) == ("coverage 0.15", {"coverage": 0.15})
    assert any("coverage 0.3" in line and line.endswith(", out") for line in said)


def test_fewer_layers_are_tried_where_no_coverage_passes():
    class Early(FakeModel):
        def ask(self, settings, n):
            late = lambda s: s.get("layers", "all") != "all" and s["layers"][0] > 7
            lines = super().ask({k: {**s, "coverage": 0.01 if late(s) else 0.5}
                                 for k, s in settings.items()}, n)  # fmt: skip
            return lines

    finder, _ = search(Early(free=0.02), num_layers=24)
    name, setting = finder.run()
    assert setting["layers"][0] == 8 and setting["layers"][-1] in (15, 22)
    assert search(Early(free=0.02), num_layers=2)[0].run() is None


def test_block_patterns_are_tried():
    class Blocks(FakeModel):
        """Blocks halve the pairs of a coverage, and are free on every token alone."""

        def ask(self, settings, n):
            lines = super().ask(settings, n)
            halved = lambda line: "blocks" in settings[line.setting]
            return [dataclasses.replace(line, pairs=line.pairs / 2) if halved(line) else line for line in lines]

    name, setting = search(Blocks(free=0.15))[0].run()
    assert name.startswith("coverage 0.15, xattention, threshold 0.9") and setting["coverage"] == 0.15
    assert setting["blocks"]["pattern"] == "xattention"
    name, setting = search(Blocks(free=0.0), num_layers=24)[0].run()
    assert name.startswith(("xattention", "flexprefill")) and setting["coverage"] == 0
    assert setting["layers"] == "all"


def test_what_is_undecided_is_known():
    finder, _ = search(FakeModel(free=0.15, noise=0.3), rounds=(10,))
    finder.run()
    undecided = finder.undecided()
    assert undecided and all(finder.lines[name].loss.high > 0.02 for name in undecided)
    assert not any(recommend.judge(finder.lines[name], recommend.Limits()).hopeless for name in undecided)


def test_points_are_of_the_official_metric_where_answers_were_generated():
    row = {"task": "a", "length": 8192, "loss": 0.1, "seconds": 1.0, "pairs": 0.5}
    rows = [{**row, "prompt": f"a/{i}", "setting": name, "exact": exact, "score": score}
            for name, exact, score in (("dense", 1.0, 1.0), ("s", 0.0, 1.0)) for i in range(20)]  # fmt: skip
    (line,) = recommend.merged(rows, ["s"])
    assert recommend.judge(line, recommend.Limits()).passed
    assert recommend.setting_file("s", {}, line, FakeModel(0), ["a"], [1])["accuracy"]["score"]["mean"] == 0
    (line,) = recommend.merged([{**row, "score": None} for row in rows], ["s"])
    assert recommend.judge(line, recommend.Limits()).hopeless


def test_a_hopeless_setting_is_asked_in_one_round_alone():
    finder, said = search(FakeModel(free=0.05))
    finder.run()
    assert sum("coverage 0.3:" in line for line in said) == 1


def test_nothing_is_recommended_where_nothing_is_certain():
    finder, _ = search(FakeModel(free=-0.1, noise=0.5), rounds=(10,))
    assert finder.run() is None


def test_time_that_runs_out_is_said():
    finder, _ = search(FakeModel(free=0.15), minutes=-1)
    assert finder.run() is None and finder.out_of_time


def test_time_that_runs_out_within_a_round_leaves_what_is_there():
    finder, _ = search(FakeModel(free=0.15))
    finder._ask = lambda settings, n: []
    assert finder.run() is None


def test_the_file_says_where_it_was_measured(tmp_path):
    model = FakeModel(free=0.15)
    finder, _ = search(model)
    name, setting = finder.run()
    made = recommend.setting_file(name, setting, finder.lines[name], model, ["a", "b"], [8192])
    recommend.write(tmp_path / "s.json", made)
    read = json.loads((tmp_path / "s.json").read_text())
    assert read["format"] == "tokensparse setting 1" and read["model"] == MODEL
    assert read["coverage"] == 0.15 and read["accuracy"]["n"] == 200
    assert read["accuracy"]["loss"]["high"] <= 0.02


@pytest.mark.parametrize("limit", [{"points": 0.0}, {"loss": -1.0}])
def test_a_limit_that_nothing_meets(limit):
    finder, _ = search(FakeModel(free=-0.1, noise=0.3), limits=recommend.Limits(**limit), rounds=(10,))
    assert finder.run() is None


def test_results_hold_what_a_table_needs(tmp_path):
    store = results.Store(tmp_path / "r.jsonl", {"model": "m"})
    store.add({"prompt": "a/1", "setting": "dense", "task": "a", "length": 1, "loss": 0.1, "exact": None,
               "score": None, "seconds": 1.0, "pairs": 1.0})  # fmt: skip
    store.close()
    (line,) = table.lines(results.read(tmp_path / "r.jsonl")[1])
    assert line.exact != line.exact  # no right answers to give: not a number


def test_what_was_asked_by_others_is_decided_without_asking(tmp_path, monkeypatch, capsys):
    numbers = types.SimpleNamespace(numbers=lambda path: MODEL)
    monkeypatch.setitem(sys.modules, "lab.engines.hugging_face", numbers)
    store = results.Store(tmp_path / "r.jsonl", {"model": "m", "engine": "e", "device": "d"})
    for index in range(40):
        for name, pairs, loss in (("dense", 1.0, 0.5), ("coverage 0.05", 0.4, 0.5), ("coverage 0.1", 0.3, 0.6)):
            row = {"prompt": f"vt/8192/{index}", "task": "vt", "length": 8192, "setting": name, "loss": loss}
            store.add({**row, "exact": 1.0, "score": None, "seconds": 1.0, "pairs": pairs, "kept": 1.0})
    store.close()
    words = ["recommend", "M", "--decide", "--results", tmp_path / "r.jsonl", "--out", tmp_path / "s.json"]
    monkeypatch.setattr(sys, "argv", ["lab", *map(str, words), "--length", "8192", "--tasks", "vt"])
    assert program.main() == 0
    read = json.loads((tmp_path / "s.json").read_text())
    assert (read["coverage"], read["accuracy"]["n"], read["accuracy"]["device"]) == (0.05, 40, "d")
    said = capsys.readouterr().err
    assert "n 10 a task: coverage 0.1: " in said and said.count("coverage 0.1:") == 1  # out at once
