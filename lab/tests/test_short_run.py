# SPDX-License-Identifier: MIT
"""The lab once through, on a real model as users run it: `scripts/test lab` names model and program."""
import os
import pathlib
import subprocess
import sys

import pytest

from lab import results, table

MODEL, PROGRAM = os.environ.get("TOKENSPARSE_LAB_MODEL"), os.environ.get("TOKENSPARSE_PROGRAM")
ROOT = pathlib.Path(__file__).parents[2]
N = int(os.environ.get("TOKENSPARSE_LAB_N", "10"))


@pytest.mark.skipif(not (MODEL and PROGRAM), reason="needs TOKENSPARSE_LAB_MODEL and TOKENSPARSE_PROGRAM")
def test_a_short_run_of_the_program(tmp_path):
    out = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "lab", "run", MODEL, "--engine", "program", "--program", PROGRAM,
               "--plan", "lab/plans/short.json", "--length", "4096", "-n", str(N), "--out", str(out)]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    dense, sparse = table.lines(results.read(out)[1])
    print(table.markdown([dense, sparse], by_task=True))
    assert (dense.n, sparse.n) == (3 * N, 3 * N)
    assert dense.pairs == 1 and 0.2 < sparse.pairs < 0.6
    assert dense.by_task["niah_multikey_1"][1] < 0.2  # the 0.5B finds a needle in prose
    assert sparse.loss.mean < 0.3
