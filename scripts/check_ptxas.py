#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Reads what `ptxas -v` said in a build log and compares every kernel with its budget: a kernel that
spills more, needs a larger stack frame or more registers than tests/kernel_budget.txt allows fails,
and so does one that the budget does not name, or names and the log lacks.

usage: check_ptxas.py LOG [BUDGET]     check_ptxas.py --write LOG > tests/kernel_budget.txt
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLUMNS = ("registers", "stack", "spill_stores", "spill_loads")


def demangle(names):
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                         check=True).stdout.splitlines()
    short = []
    for name in out:
        name = re.sub(r"tsp::cuda::(\(anonymous namespace\)::)?", "", name)
        name = re.sub(r"^void |\(.*$", "", name.replace("(int)", ""))
        short.append(name.replace(" ", ""))
    return short


def kernels_of(log):
    """{kernel: (registers, stack, spill stores, spill loads)}, the largest over targets."""
    found, mangled = [], None
    numbers = [0, 0, 0]
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            mangled = match.group(1)
        elif match := re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            numbers = [int(n) for n in match.groups()]
        elif (match := re.search(r"Used (\d+) registers", line)) and mangled:
            found.append((mangled, (int(match.group(1)), *numbers)))
            mangled = None
    names = demangle([name for name, _ in found]) if found else []
    kernels = {}
    for name, (_, values) in zip(names, found):
        old = kernels.get(name, (0, 0, 0, 0))
        kernels[name] = tuple(max(a, b) for a, b in zip(old, values))
    return kernels


def budget_of(path):
    budget = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, *values = line.split()
            budget[name] = tuple(int(v) for v in values)
    return budget


def main(args):
    write = args[:1] == ["--write"]
    args = args[1:] if write else args
    if not args:
        print(__doc__, file=sys.stderr)
        return 2
    kernels = kernels_of(pathlib.Path(args[0]).read_text(encoding="utf-8", errors="replace"))
    if write:
        print("# What each kernel of the cuda-min build may use (sm_90, nvcc 13.0); kept by "
              "scripts/check_ptxas.py.\n# kernel " + " ".join(COLUMNS))
        for name in sorted(kernels):
            print(name, *kernels[name])
        return 0
    budget = budget_of(pathlib.Path(args[1]) if len(args) > 1 else ROOT / "tests/kernel_budget.txt")
    problems = [f"{name}: not in the budget" for name in kernels if name not in budget]
    problems += [f"{name}: in the budget, not in the log" for name in budget if name not in kernels]
    for name in kernels.keys() & budget.keys():
        for column, value, limit in zip(COLUMNS, kernels[name], budget[name]):
            if value > limit:
                problems.append(f"{name}: {column} {value}, budget {limit}")
    for problem in sorted(problems):
        print(problem)
    print(f"{len(kernels)} kernels, {len(problems)} over budget")
    return 1 if problems or not kernels else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
