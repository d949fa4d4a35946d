# SPDX-License-Identifier: MIT
"""What can go wrong with a run: one sentence, a status that says so, and nothing lost."""
import json
import sys

import pytest

from lab import __main__ as program
from lab import results
from lab.engines import Measurement

PLAN = {"local .1": {"coverage": 0.1}}


class Fake:
    """Answers at once; `stop` answers are given before somebody presses Ctrl-C."""

    limit = 4096

    def __init__(self, tokenizer, model="m", stop=None):
        self.tokenizer, self.stop = tokenizer, stop
        self.subject = {"model": model, "engine": "fake", "device": "none"}

    def measure(self, prompt, setting, generate=False):
        if self.stop is not None:
            if self.stop == 0:
                raise KeyboardInterrupt
            self.stop -= 1
        return Measurement(0.1, 1.0, 1.0, 0.3 if setting else 1.0, 1.0)


@pytest.fixture
def run(tmp_path, tokenizer, monkeypatch):
    """run(arguments, engine fields) -> status; files in tmp_path."""
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))

    def of(*arguments, length=1500, **fields):
        monkeypatch.setattr(program, "_open_engine", lambda args: Fake(tokenizer, **fields))
        words = ["run", "M", "--plan", tmp_path / "plan.json", "--out", tmp_path / "r.jsonl"]
        words += ["--length", length, "-n", 2, "--tasks", "vt", *arguments]
        monkeypatch.setattr(sys, "argv", ["lab", *map(str, words)])
        return program.main()

    return of


def said(capsys):
    """The one sentence on stderr."""
    (line,) = capsys.readouterr().err.strip().split("\n")
    return line


def test_an_interrupted_run_says_so_and_goes_on(run, tmp_path, capsys):
    assert run(stop=3) == 130
    assert said(capsys) == "lab: interrupted; run it again to go on"
    assert len(results.read(tmp_path / "r.jsonl")[1]) == 3
    assert run(stop=1) == 0  # one answer was missing
    rows = results.read(tmp_path / "r.jsonl")[1]
    assert sorted((row["prompt"], row["setting"]) for row in rows) == [
        (f"vt/1500/{index}", name) for index in (0, 1) for name in ("dense", "local .1")
    ]


def test_results_of_another_model_stay_as_they_are(run, tmp_path, capsys):
    assert run() == 0
    before = (tmp_path / "r.jsonl").read_bytes()
    assert run(model="other") == 1
    assert "holds results of model 'm', this run is of 'other'; name another file" in said(capsys)
    assert (tmp_path / "r.jsonl").read_bytes() == before


def test_a_task_that_is_longer_than_the_context(run, tmp_path, capsys):
    assert run(length=8192) == 1
    assert said(capsys) == "lab: length: the model takes 4096 tokens at most, got 8192"
    assert run(length=20) == 1
    assert "vt needs more than 20 tokens" in said(capsys)


def test_a_plan_that_cannot_be_read(run, tmp_path, capsys):
    (tmp_path / "plan.json").write_text("{")
    assert run() == 1
    assert "plan.json: not JSON" in said(capsys)
    (tmp_path / "plan.json").unlink()
    assert run() == 1
    assert "No such file" in said(capsys)


def test_a_model_that_is_not_there(monkeypatch, capsys, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "plan.json").write_text("{}")
    words = ["lab", "run", tmp_path / "no.gguf", "--plan", tmp_path / "plan.json", "--out", tmp_path / "r"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    assert program.main() == 1
    assert "model: no such file or folder" in capsys.readouterr().err
