# SPDX-License-Identifier: MIT
"""The C ABI as ctypes sees it beside the headers: every offset, size and number, asked of a compiler."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from tokensparse import _library

HEADERS = Path(__file__).parents[3] / "include"
STRUCTS = {
    "tsp_tensor_t": _library.Tensor,
    "tsp_batch_t": _library.Batch,
    "tsp_index_sets_t": _library.IndexSets,
    "tsp_context_options_t": _library.ContextOptions,
    **{f"tsp_{op}_params_t": params for op, params in _library._PARAMS.items()},
}
TABLES = {
    "TSP_SHARE_": _library.SHARES,
    "TSP_DROPPED_": _library.DROPPED,
    "TSP_PRECISION_": _library.PRECISIONS,
    "TSP_BACKEND_": _library.BACKENDS,
    "TSP_WHEN_": _library.WHEN,
}
NUMBERS = {
    "TSP_ABI_VERSION": _library.ABI_VERSION,
    "TSP_F32": _library.DTYPES["float32"],
    "TSP_F16": _library.DTYPES["float16"],
    "TSP_BF16": _library.DTYPES["bfloat16"],
    **{prefix + name.upper(): value for prefix in TABLES for name, value in TABLES[prefix].items()},
}


def test_ctypes_sees_what_the_headers_say(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    expected, lines = {}, []
    for name, struct in STRUCTS.items():
        expected[name] = ctypes.sizeof(struct)
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, kind in struct._fields_:
            member = field.rstrip("_") if field == "in_" else field
            expected[f"{name}.{field}"] = getattr(struct, field).offset
            expected[f"{name}.{field} size"] = ctypes.sizeof(kind)
            offset = f"offsetof({name}, {member})"
            lines.append(f'printf("{name}.{field} %zu\\n", {offset});')
            size = f"sizeof((({name}*)0)->{member})"
            lines.append(f'printf("{name}.{field} size %zu\\n", {size});')
    for name, value in NUMBERS.items():
        expected[name] = value
        lines.append(f'printf("{name} %d\\n", (int){name});')
    source = tmp_path / "abi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <tokensparse/tokensparse.h>\n"
        f"int main(void) {{ {' '.join(lines)} return 0; }}\n"
    )
    program = tmp_path / "abi"
    subprocess.run([compiler, "-I", HEADERS, source, "-o", program], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in (x.rsplit(" ", 1) for x in output.splitlines())}
    assert found == expected
