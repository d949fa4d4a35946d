#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Files stay small enough to hold in the head: source 400 lines, kernels and tests 600, 1 MiB."""

import subprocess
import sys
from pathlib import Path

LIMITS = (("src/cuda/", 600), ("tests/", 600), ("", 400))
SOURCE = {".h", ".hpp", ".c", ".cc", ".cu", ".cuh", ".py", ".cmake"}
MAX_BYTES = 1 << 20


def main():
    root = Path(__file__).resolve().parent.parent
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    faults = []
    for name in filter(None, names):
        path = root / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        if len(content) > MAX_BYTES:
            faults.append(f"{name}: {len(content)} bytes, at most {MAX_BYTES}")
        if path.suffix in SOURCE:
            lines = content.count(b"\n")
            limit = next(limit for prefix, limit in LIMITS if name.startswith(prefix))
            if lines > limit:
                faults.append(f"{name}: {lines} lines, at most {limit}")
    print("\n".join(faults) if faults else "all files within their limits")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
