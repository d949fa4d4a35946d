# SPDX-License-Identifier: MIT
"""Packages that the lab needs and an environment lacks: one sentence that names the package."""
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# A package set to None cannot be imported, as if it were not installed.
WITHOUT = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None
runpy.run_module("lab", run_name="__main__")
"""


@pytest.fixture
def without(tmp_path):
    """without(package, words...) -> (status, what stands on stderr) of the lab."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "r.jsonl").write_text('{"format": "tokensparse lab 1", "model": "m"}\n')

    def run(package, *words):
        command = [sys.executable, "-c", WITHOUT, package, *(word.format(tmp_path) for word in words)]
        got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return got.returncode, got.stderr

    return run


RUN = ("run", "{}/m.gguf", "--plan", "{}/plan.json", "--out", "{}/out.jsonl")
PROGRAM = (*RUN, "--engine", "program", "--program", sys.executable)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("numpy", ("tasks",)),
        ("torch", RUN),
        ("transformers", PROGRAM),
        ("transformers", ("prompts", "{}/m.gguf", "--out", "{}/p.jsonl")),
        ("gguf", RUN),
        ("gguf", ("convert", "{}/m.gguf", "--out", "{}/folder")),
        ("tokensparse", (*RUN, "--engine", "transformers")),
        ("matplotlib", ("plot", "{}/r.jsonl", "--out", "{}/plot.svg")),
    ],
)
def test_a_package_that_is_not_installed_is_named(without, package, words):
    for needed in ("torch", "transformers") if words[0] in ("run", "prompts", "convert") else ():
        pytest.importorskip(needed)
    assert without(package, *words) == (
        1,
        f"lab: needs the Python package {package}; lab/README.md says which it takes\n",
    )


def test_a_module_of_the_lab_that_is_missing_is_a_fault(without):
    status, said = without("lab.plots", "plot", "{}/r.jsonl", "--out", "{}/plot.svg")
    assert status == 1 and "Traceback" in said and "lab.plots" in said
