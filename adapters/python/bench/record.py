# SPDX-License-Identifier: MIT
"""Keeps figures in a JSON file: one row for each thing measured, the newest run wins."""

import datetime
import json
import os
import platform
import statistics
from pathlib import Path


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def save(path, row, key):
    """Adds `row` to the file, in the place of a row that agrees with it in the fields `key`."""
    file = Path(path)
    found = json.loads(file.read_text()) if file.exists() else {"rows": []}
    found["machine"] = {"processor": processor(), "cores": os.cpu_count()}
    row = {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%FT%TZ"), **row}
    rows = [old for old in found["rows"] if any(old.get(f) != row[f] for f in key)]
    found["rows"] = sorted(rows + [row], key=lambda r: [str(r.get(f, "")).zfill(9) for f in key])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


def rounds(repeat, length):
    """Of a prompt: short ones take little time, and vary more."""
    return repeat * (1 + 1024 // length)


def ratios(times):
    """Medians of {"stock": [...], "exact": [...], ...} and ratios against stock, where it is there."""
    median = {name: statistics.median(found) for name, found in times.items()}
    speedups = {
        f"{name}_speedup": round(median["stock"] / value, 3)
        for name, value in median.items()
        if name != "stock" and "stock" in median
    }
    return {
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "all_seconds": {name: [round(t, 4) for t in found] for name, found in times.items()},
        **speedups,
    }
