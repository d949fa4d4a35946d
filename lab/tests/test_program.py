# SPDX-License-Identifier: MIT
"""The engine that asks `tokensparse eval`, with a stand-in for the program."""
import json
import stat
import sys

import pytest

from lab.engines import EngineError, openvino_engine
from lab.engines.program import Engine
from lab.prompts import Prompt

ANSWERS = """#!{python}
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    with open({seen!r}, "a") as file:
        file.write(json.dumps([sys.argv[1:], asked]) + "\\n")
    print(json.dumps(dict(loss=0.5, exact=True, seconds=2.0, pairs=0.3, kept=0.4, answer="",
               pairs_by_layer=[1, 0.123456], attention_seconds_by_layer=[0.5, 0.25])), flush=True)
"""


class Words:
    def decode(self, tokens):
        return " ".join(map(str, tokens))


def prompt(refs=("7",)):
    return Prompt("vt", 6144, 0, (1, 2, 3), (7, 8), refs, 30)


@pytest.fixture
def engine(tmp_path):
    program, seen = tmp_path / "program", tmp_path / "seen"
    program.write_text(ANSWERS.format(python=sys.executable, seen=str(seen)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return Engine("m.gguf", Words(), 32768, {}, str(program)), seen


def test_a_question_and_what_comes_back(engine):
    engine, seen = engine
    got = engine.measure(prompt(), {})
    assert (got.loss, got.exact, got.pairs, got.kept) == (0.5, 1.0, 0.3, 0.4)
    assert got.more == {"pairs_by_layer": [1, 0.1235], "seconds_by_layer": [0.5, 0.25]}
    assert got.text is None  # nothing was generated, so nothing can be scored
    assert engine.measure(prompt(), {"coverage": 0.1}, generate=True).text == ""
    assert engine.measure(prompt(refs=()), {}).exact is None
    (dense, first), (sparse, second), _ = map(json.loads, seen.read_text().splitlines())
    assert dense[:2] == ["eval", "-m"] and "exact" in dense and "exact" not in sparse
    assert first == {"id": "vt/6144/0", "tokens": [1, 2, 3], "answer": "7 8", "max_tokens": 0}
    assert second["max_tokens"] == 30


def test_a_program_that_ends_is_said(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(EngineError, match="ended with 3"):
        Engine("m.gguf", Words(), 32768, {}, str(program)).measure(prompt(), {})
    with pytest.raises(EngineError, match="no such program: no-program"):
        Engine("m.gguf", Words(), 32768, {}, "no-program")


WITHOUT_LOSS = """#!{python}
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    assert sys.argv[1].endswith("openvino_worker.py") and sys.argv[3] in ("dense", "xattention")
    answer = " ".join(map(str, asked["answer_tokens"]))
    print(json.dumps(dict(loss=None, exact=sys.argv[3] == "dense", seconds=1, pairs=None, kept=None, answer=answer)), flush=True)
"""


def test_openvino_tells_no_loss_and_takes_its_modes_alone(tmp_path):
    python, weights = tmp_path / "python", tmp_path / "q8_0.gguf"
    python.write_text(WITHOUT_LOSS.format(python=sys.executable))
    python.chmod(0o755)
    with pytest.raises(EngineError, match="--openvino: no such file: .*q8_0.gguf"):
        openvino_engine.Engine("m.gguf", Words(), 32768, {}, str(python), str(weights))
    weights.touch()
    engine = openvino_engine.Engine("m.gguf", Words(), 32768, {}, str(python), str(weights))
    assert engine.subject["model"] == "m.gguf"  # one table with other engines of these weights
    got = engine.measure(prompt(), {"openvino": "dense"})
    assert (got.loss, got.exact, got.pairs, got.text) == (None, 1.0, None, None)
    assert engine.measure(prompt(), {"openvino": "xattention"}, generate=True).text == "7 8"
    for setting in ({}, {"coverage": 0.1}, {"openvino": "sparse"}, {"openvino": "dense", "band": 9}):
        with pytest.raises(EngineError, match="openvino: a setting must be .*dense, xattention"):
            engine.measure(prompt(), setting)
