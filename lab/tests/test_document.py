# SPDX-License-Identifier: MIT
import json
import pathlib
import sys

import pytest

from lab import __main__ as program
from lab import document, results

ROOT = pathlib.Path(__file__).parents[2]


def lab(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["lab", *map(str, arguments)])
    return program.main()


@pytest.fixture
def measured(tmp_path):
    """Results where coverage .1 costs .1 nats, and half of RULER's score where answers were generated."""
    store = results.Store(tmp_path / "r.jsonl", {"model": "m", "engine": "restated", "device": "none"})
    for name, options, loss in (("dense", {}, 0.2), ("local .1", {"coverage": 0.1}, 0.3)):
        for index in range(5):
            store.add({"prompt": f"vt/8192/{index}", "task": "vt", "length": 8192, "setting": name,
                       "options": options, "loss": loss, "exact": 1.0, "score": (1.0 if name == "dense" else 0.5) if index > 2 else None, "seconds": 1.0,
                       "pairs": 1.0 if name == "dense" else 0.3})  # fmt: skip
    store.close()
    return tmp_path / "r.jsonl"


def test_a_marked_table_is_made_anew_and_the_rest_stays(tmp_path, measured, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n<!-- lab table {measured} -->\n| old |\n| --- |\n\nafter\n| kept |\n")
    assert lab(monkeypatch, "document", page, "--check") == 1
    assert "| old |" in page.read_text()
    assert lab(monkeypatch, "document", page) == 0
    text = page.read_text()
    assert "| old |" not in text and "| 8,192 | local .1 | 5 | 0.300 | +0.100" in text and "| -50.0 [-50.0, -50.0] |" in text
    assert text.startswith("before\n") and text.endswith("|\n\nafter\n| kept |\n")
    assert lab(monkeypatch, "document", page, "--check") == 0


def test_a_setting_file_gets_what_its_setting_costs(tmp_path, measured, monkeypatch):
    file = tmp_path / "s.json"
    setting = {"format": "f", "name": "n", "model": {}, "coverage": 0.1, "band": 256, "accuracy": {"weights": "w"}}
    file.write_text(json.dumps(setting))
    assert lab(monkeypatch, "document", file, measured) == 0
    accuracy = json.loads(file.read_text())["accuracy"]
    assert accuracy["weights"] == "w" and accuracy["tasks"] == ["vt"]
    assert accuracy["by_length"]["8192"]["score"] == {"n": 2, "mean": -50, "low": -50, "high": -50}
    assert accuracy["by_length"]["8192"]["n"] == 5 and accuracy["results"] == [str(measured)]
    assert lab(monkeypatch, "document", file, "--check") == 0  # it knows its results
    assert accuracy["by_length"]["8192"]["loss"]["mean"] == pytest.approx(0.1)
    file.write_text(json.dumps({**setting, "band": 128}))
    assert lab(monkeypatch, "document", file, measured) == 1  # no results of this one


def test_results_that_are_not_there_are_named():
    with pytest.raises(results.ResultsError, match="no such results: nothing-"):
        document.files(["nothing-*.jsonl"])


@pytest.mark.parametrize("page", ["README.md", "docs/accuracy.md", "docs/relatives.md"])
def test_the_tables_of_the_documents_are_those_of_the_results(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert document.MARKED.search((ROOT / page).read_text())
    assert lab(monkeypatch, "document", page, "--check") == 0


@pytest.mark.parametrize("name", [file.name for file in sorted((ROOT / "settings").glob("*.json"))])
def test_the_costs_in_setting_files_are_those_of_the_results(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lab(monkeypatch, "document", f"settings/{name}", "--check") == 0
