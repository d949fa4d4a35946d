# SPDX-License-Identifier: MIT
"""Tables in documents and costs in setting files, from results: so that neither is copied by hand.

In a document a line `<!-- lab table FILES OPTIONS -->` stands above each table, and says what makes it.
"""
import glob
import json
import pathlib
import re
import shlex

from lab import table
from lab.engines.restated_defaults import DEFAULTS
from lab.results import ResultsError

MARKED = re.compile(r"(<!-- lab table ([^\n]+?) -->\n)((?:\|[^\n]*\n)*)")
BESIDE = ("format", "name", "model", "accuracy")  # of a setting file, beside the setting


def renewed(text, make):
    """The document with each table made anew. make(arguments) gives its Markdown."""
    return MARKED.sub(lambda found: f"{found[1]}{make(shlex.split(found[2]))}\n", text)


def files(patterns, folder="."):
    """The files that patterns name, in order: documents have no shell to expand them."""
    found = []
    for pattern in patterns:
        here = sorted(glob.glob(str(pathlib.Path(folder) / pattern)))
        if not here:
            raise ResultsError(f"no such results: {pattern}")
        found += here
    return found


def _asked(options, length):
    """What a setting asks for at a length, with what it leaves open."""
    asked = {"layers": "middle", **DEFAULTS, **options, "min_keys": 0}
    if 0 < asked["long_keys"] <= length:
        asked["coverage"] = asked["long_coverage"]
    return {**asked, "long_keys": 0, "long_coverage": 0}


def costs(setting, header, rows):
    """What a setting file says under `accuracy`, from the rows of its setting and of dense."""
    options = {key: value for key, value in setting.items() if key not in BESIDE}
    mine = [
        row
        for row in rows
        if row["options"]
        and _asked(row["options"], row["length"]) == _asked(options, row["length"])
    ]
    if not mine:
        raise ResultsError(f"{setting['name']}: no results of this setting")
    dense = [row for row in rows if row["setting"] == table.DENSE]
    lines = table.lines(dense + [{**row, "setting": "it"} for row in mine])
    interval = lambda d: {key: round(getattr(d, key), 4) for key in ("mean", "low", "high")}
    by_length = {
        str(line.length): {
            "n": line.loss.n,
            "pairs": round(line.pairs, 3),
            "loss": interval(line.loss),
            "points": interval(line.points),
            **({"score": {"n": line.score.n, **interval(line.score)}} if line.score else {}),
        }
        for line in lines
        if line.setting == "it"
    }
    return {
        "measured": header["date"],
        "engine": header["engine"],
        "device": header["device"],
        "tasks": sorted({row["task"] for row in mine}),
        "by_length": by_length,
    }
