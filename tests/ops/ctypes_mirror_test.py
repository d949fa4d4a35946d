# SPDX-License-Identifier: MIT
"""The Python package's ctypes structs against the C headers: every field's name, offset and size."""

import ctypes
import importlib.util
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HEADERS = ROOT / "include" / "tokensparse"
MIRROR = ROOT / "adapters" / "python" / "src" / "tokensparse" / "_library.py"


def header_structs():
    """{"tsp_score_params": ["struct_size", "window", ...], ...}, as the headers say."""
    structs = {}
    for header in sorted(HEADERS.glob("*.h")):
        source = re.sub(r"//.*", "", header.read_text())
        for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \w+_t;", source, re.S):
            fields = [re.search(r"(\w+)\s*$", field) for field in body.split(";")]
            structs[name] = [field[1] for field in fields if field]
    return structs


def c_layout(structs):
    """{"tsp_score_params": (size, {"window": (offset, size), ...}), ...}, as the C compiler says."""
    lines = ['#include <stdio.h>', '#include "tokensparse/tokensparse.h"', "int main(void) {"]
    for name, fields in structs.items():
        lines.append(f'printf("{name} . 0 %zu\\n", sizeof({name}_t));')
        lines += [f'printf("{name} {field} %zu %zu\\n", offsetof({name}_t, {field}),'
                  f" sizeof((({name}_t*)0)->{field}));" for field in fields]
    lines.append("}")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "layout"
        source = program.with_suffix(".c")
        source.write_text("\n".join(lines))
        subprocess.run([os.environ.get("CC", "cc"), "-std=c11", f"-I{HEADERS.parent}", source,
                        "-o", program], check=True)
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    layout = {}
    for line in output.splitlines():
        name, field, offset, size = line.split()
        if field == ".":
            layout[name] = (int(size), {})
        else:
            layout[name][1][field] = (int(offset), int(size))
    return layout


def mirror():
    spec = importlib.util.spec_from_file_location("tokensparse_library", MIRROR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class MirrorTest(unittest.TestCase):
    def test_every_struct_is_laid_out_as_in_c(self):
        library = mirror()
        layout = c_layout(header_structs())
        self.assertGreaterEqual(len(layout), 10)
        for name, (size, fields) in layout.items():
            python_name = "".join(word.capitalize() for word in name.split("_")[1:])
            with self.subTest(struct=name):
                struct = getattr(library, python_name)
                mine = {}
                for field, _ in struct._fields_:
                    descriptor = getattr(struct, field)
                    mine[field.rstrip("_")] = (descriptor.offset, descriptor.size)
                self.assertEqual(list(mine.items()), list(fields.items()))
                self.assertEqual(ctypes.sizeof(struct), size)

    def test_every_operation_has_its_params(self):
        library = mirror()
        params = {name for name in header_structs() if name.endswith("_params")}
        self.assertEqual({f"tsp_{op}_params" for op in library._PARAMS}, params)


if __name__ == "__main__":
    unittest.main()
