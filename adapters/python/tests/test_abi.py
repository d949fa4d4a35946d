# SPDX-License-Identifier: MIT
"""The numbers that Python gives to choices and dtypes are those of the C headers."""

import re
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
