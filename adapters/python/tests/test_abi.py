# SPDX-License-Identifier: MIT
"""Numbers, structs and fields of the Python mirror are those of the C headers."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tokensparse import _library

HEADERS = Path(__file__).parents[3] / "include" / "tokensparse"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CHOICES = {
    "SHARE": _library.SHARES,
    "DROPPED": _library.DROPPED,
    "PRECISION": _library.PRECISIONS,
    "BACKEND": _library.BACKENDS,
    "WHEN": _library.WHEN,
    "PATTERN": _library.PATTERNS,
}


def in_headers(pattern):
    text = "".join(header.read_text() for header in HEADERS.glob("*.h"))
    found = re.findall(rf"^ *TSP_{pattern}\s*=\s*(\d+)", text, re.MULTILINE)
    return {name: int(value) for name, value in found}


@pytest.mark.parametrize("prefix", CHOICES)
def test_choices(prefix):
    expected = {name.upper(): value for name, value in CHOICES[prefix].items()}
    assert in_headers(rf"{prefix}_(\w+)") == expected


def test_dtypes():
    assert in_headers("(B?F[0-9]+)") == {c: _library.DTYPES[name] for c, name in DTYPES.items()}


STRUCTS = {
    "tsp_tensor": _library.Tensor,
    "tsp_batch": _library.Batch,
    "tsp_index_sets": _library.IndexSets,
    "tsp_pattern": _library.Pattern,
    "tsp_block_sets": _library.BlockSets,
    "tsp_context_options": _library.ContextOptions,
    **{f"tsp_{op}_params": params for op, params in _library._PARAMS.items()},
}


def fields_in_headers():
    """{struct: its fields' names} of every struct that the headers define."""
    text = "".join(header.read_text() for header in sorted(HEADERS.glob("*.h")))
    text = re.sub(r"//.*|/\*.*?\*/", "", text)
    found = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \w+;", text, re.DOTALL):
        found[name] = [re.findall(r"\w+", line)[-1] for line in body.split(";") if line.strip()]
    return found


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """{struct: (size, [(field, offset, size)])} as the C compiler lays the headers out."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("layout")
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "tokensparse/tokensparse.h"']
    lines.append("int main(void) {")
    for name, fields in fields_in_headers().items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}_t));')
        for field in fields:
            size = f"sizeof((({name}_t*)0)->{field})"
            lines.append(f'printf("{name} {field} %zu %zu\\n", offsetof({name}_t, {field}), {size});')
    lines.append("return 0; }")
    (folder / "layout.c").write_text("\n".join(lines))
    (folder / "tokensparse").mkdir()
    for header in HEADERS.glob("*.h"):
        shutil.copy(header, folder / "tokensparse")
    template = (HEADERS / "version.h.in").read_text()
    (folder / "tokensparse" / "version.h").write_text(re.sub(r"@\w+@", "0", template))
    program = str(folder / "layout")
    subprocess.run([compiler, "-I", str(folder), str(folder / "layout.c"), "-o", program], check=True)
    found = {}
    for line in subprocess.run([program], check=True, capture_output=True, text=True).stdout.split("\n"):
        words = line.split()
        if len(words) == 2:
            found[words[0]] = (int(words[1]), [])
        elif words:
            found[words[0]][1].append((words[1], int(words[2]), int(words[3])))
    return found


def test_every_struct_is_mirrored():
    assert set(fields_in_headers()) == set(STRUCTS)


@pytest.mark.parametrize("name", STRUCTS)
def test_layouts(name, layouts):
    mirror = STRUCTS[name]
    fields = [(f[0].rstrip("_"), getattr(mirror, f[0])) for f in mirror._fields_]
    assert (ctypes.sizeof(mirror), [(n, f.offset, f.size) for n, f in fields]) == layouts[name]
