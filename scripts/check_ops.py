#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every operation of the op table stands wherever an operation must, and every source file is in
the build. What an operation needs is the recipe of CONTRIBUTING.md."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = {name: f"src/{name}/{name}_ops.cc" for name in ("ref", "cpu", "cuda")}
# Measured as parts of another operation, with the reason.
UNMEASURED = {
    "compress": "bench/cuda/compare.py times it; host backends gather within attend",
    "decompress": "bench/cuda/compare.py times it; host backends scatter within attend",
}


def text(path):
    path = ROOT / path
    return path.read_text() if path.is_file() else ""


def tracked(*folders):
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def operations():
    entry = re.compile(r"tsp_status_t \(\*(\w+)\)\(tsp_context_t&, const tsp_(\w+)_params_t&\);")
    return [name for name, params in entry.findall(text("src/core/op_table.h")) if name == params]


def backend_faults(op, backend, table):
    entry = re.search(rf"\.{op} = ([\w:]+),(.*)", text(table))
    if entry is None:
        yield f"{table}: no entry .{op}"
    elif entry[1] == "nullptr":
        if "//" not in entry[2]:
            yield f"{table}: .{op} is null without a comment that says why"
    else:
        definition = re.compile(
            rf"^tsp_status_t {op}\(tsp_context_t& ?\w*, const tsp_{op}_params_t& ?\w*\) {{", re.M
        )
        sources = [name for name in tracked(f"src/{backend}") if name.endswith((".cc", ".cu"))]
        if not any(definition.search(text(name)) for name in sources):
            yield f"src/{backend}: no file defines {op}(tsp_context_t&, const tsp_{op}_params_t&)"


def operation_faults(op):
    """What is missing, with the place where it belongs."""

    def need(path, pattern, what):
        if re.search(pattern, text(path), re.M) is None:
            yield f"{path}: {what}"

    header = f"include/tokensparse/{op}.h"
    yield from need(header, rf"tsp_status_t tsp_{op}\(", f"no function tsp_{op}")
    umbrella = "include/tokensparse/tokensparse.h"
    yield from need(umbrella, rf'"tokensparse/{op}\.h"', f"does not include {op}.h")
    hpp = "include/tokensparse/tokensparse.hpp"
    yield from need(hpp, rf"^inline Status {op}\(", f"no wrapper {op}()")
    yield from need(hpp, rf": tsp_{op}_params_t {{", f"no params struct over tsp_{op}_params_t")
    dispatch = f"src/dispatch/{op}.cc"
    yield from need(dispatch, rf"^tsp_status_t tsp_{op}\(", f"does not define tsp_{op}")
    yield from need("src/dispatch/params_abi.h", rf"\(tsp_{op}_params,", f"no end of tsp_{op}_params")
    for backend, table in BACKENDS.items():
        yield from backend_faults(op, backend, table)
    test = f"tests/ops/{op}_test.cc"
    yield from need(test, "TSP_INSTANTIATE_ON_ALL_BACKENDS", "no test on every backend")
    yield from need("tests/ops/abi_test.cc", rf'op_case\("{op}"', f"no case for tsp_{op}_params")
    fuzz = "tests/fuzz/abi_fuzz.cc"
    yield from need(fuzz, rf"^void fuzz_{op}\(", f"no fuzz_{op}()")
    yield from need(fuzz, rf'{{"{op}", fuzz_{op}}}', f"fuzz_{op}() is not among the operations")
    mirror = "adapters/python/src/tokensparse/_library.py"
    yield from need(mirror, rf'^    "{op}": \w+Params,', "no ctypes mirror in _PARAMS")
    package = "adapters/python/src/tokensparse/__init__.py"
    yield from need(package, rf'^    "{op}",', f"does not export {op}()")
    tests = [text(name) for name in tracked("adapters/python/tests")]
    if not any(re.search(rf"\btokensparse\.{op}\(", test) for test in tests):
        yield f"adapters/python/tests: no test calls tokensparse.{op}()"
    yield from need("CHANGELOG.md", rf"\b{op}\b", f"does not mention {op}")
    benches = text("cli/bench/ops.h")
    if op not in UNMEASURED and re.search(rf"\btsp_{op}\(", benches) is None:
        yield f"cli/bench/ops.h: does not measure {op} (scripts/check_ops.py can say why not)"
    if op not in UNMEASURED:
        yield from need("cli/bench/bench.cc", rf'add_bench_verb\(\*verb, "{op}"', f"no verb {op}")
        yield from need("tests/cli/bench_test.py", rf'"{op}"', f"does not run bench {op}")
        if op != "prefill":  # the sum of its parts
            yield from need("bench/shape.h", rf"^Work {op}_work\(", f"no floor {op}_work()")


def listed_sources(folder):
    """The files that the CMake lists of a folder name, loop variables filled in."""
    lists = tracked(folder, "cmake")
    build = "\n".join(text(name) for name in lists if name.endswith(("CMakeLists.txt", ".cmake")))
    build = re.sub(r"#.*", "", build)
    variables = {}
    for name, values in re.findall(r"\b(?:set|list)\((?:APPEND )?(\w+) ([^()$]*)\)", build):
        variables.setdefault(name, set()).update(values.split())
    loops = {}
    for name, values in re.findall(r"\bforeach\((\w+) ([^()]*)\)", build):
        words = values.split()
        if words[:2] == ["IN", "LISTS"]:
            words = [value for variable in words[2:] for value in variables.get(variable, ())]
        loops.setdefault(name, set()).update(words)
    found = set()
    for word in re.findall(r"[\w./${}-]+\.(?:cc|cu)\b", build):
        word = re.sub(r"^\$\{(PROJECT_SOURCE_DIR|CMAKE_CURRENT_LIST_DIR)\}/", "", word)
        word = word.removeprefix(f"{folder}/")
        variable = re.search(r"\$\{(\w+)\}", word)
        values = loops.get(variable[1], ()) if variable else ("",)
        found.update(word.replace(variable[0], value) if variable else word for value in values)
    return found


def source_faults():
    """A file that no build names is a file that nobody compiles."""
    for folder in ("src", "tests", "cli", "adapters/ggml"):
        listed = listed_sources(folder)
        for name in tracked(folder):
            inside = name.removeprefix(f"{folder}/")
            # CMake lists stand in the folder or in one above it.
            spellings = {inside.split("/", n)[n] for n in range(inside.count("/") + 1)}
            if name.endswith((".cc", ".cu")) and not spellings & listed and name not in listed:
                yield f"{name}: in no CMake list"


def main():
    ops = operations()
    if len(ops) < 6:
        print(f"src/core/op_table.h: found {len(ops)} operations, the pattern must be wrong")
        return 1
    faults = [fault for op in ops for fault in operation_faults(op)]
    faults += source_faults()
    for name in tracked("include/tokensparse"):
        for op in re.findall(r"^\} tsp_(\w+)_params_t;", text(name), re.M):
            if op not in ops:
                faults.append(f"src/core/op_table.h: no entry {op}, which {name} declares")
    stale = [op for op in UNMEASURED if op not in ops]
    faults += [f"scripts/check_ops.py: {op} is not an operation" for op in stale]
    print("\n".join(faults) if faults else f"{len(ops)} operations in every place: {', '.join(ops)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
