# SPDX-License-Identifier: MIT
"""The command `tokensparse` of an installed wheel: the program that travels inside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Becomes the program."""
    program = Path(__file__).with_name("bin") / "tokensparse"
    if not program.exists():
        sys.exit(
            "tokensparse: this wheel was built without the program; `scripts/package wheel` in a"
            " clone builds one with it"
        )
    os.execv(program, [str(program), *sys.argv[1:]])
