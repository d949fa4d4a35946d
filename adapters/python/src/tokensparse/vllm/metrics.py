# SPDX-License-Identifier: MIT
"""Prometheus metrics beside vLLM's own, at the server's /metrics.

The layers run in processes of their own, whose registries nobody asks. So each of them leaves its
totals in a file of a folder that the first process, the server, made; a collector there adds them
up whenever /metrics is read. With several API servers (`--api-server-count`) vLLM shows another
registry, which has none of this.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .._report import Report

FOLDER = "_TOKENSPARSE_METRICS"  # in the environment of the server's children

# Of each metric its help; counters are sums over layers and ranks.
COUNTERS = {
    "query_rows": "Query rows that tokensparse attended, times layers",
    "calls": "Attention calls of one sequence in one layer that tokensparse served",
    "sparse_calls": "Of these, the ones that left tokens out",
    "key_tokens": "Keys of the served calls",
    "kept_tokens": "Keys that were kept of them",
    "exact_calls": "Served calls of layers that the setting names which were exact, by reason",
    "stock_calls": "Attention calls handed to vLLM's own kernel, by reason",
}
GAUGES = {"kept_share": "Kept tokens over tokens of the served calls since the start"}

Sample = tuple[str, dict[str, str], float]


def totals(report: Report) -> dict[str, Any]:
    """What a process leaves in its file."""
    found: dict[str, Any] = {name: Counter() for name in COUNTERS}
    for layer in report:
        kind = "sparse" if layer.named else "exact"
        found["query_rows"][kind] += layer.query_tokens
        found["calls"][kind] += layer.served
        found["sparse_calls"][kind] += layer.sparse_calls
        found["key_tokens"][kind] += layer.key_tokens
        found["kept_tokens"][kind] += layer.kept_tokens
        found["exact_calls"].update(layer.exact)
        found["stock_calls"].update(layer.stock)
    return found


def samples(processes: Iterable[dict[str, Any]]) -> Iterator[Sample]:
    """Name, labels and value of everything that the processes counted together."""
    sums: dict[str, Counter[str]] = {name: Counter() for name in COUNTERS}
    for process in processes:
        for name, counts in process.items():
            sums[name].update(counts)
    for name, counts in sums.items():
        label = "reason" if name in ("exact_calls", "stock_calls") else "layers"
        for value, count in sorted(counts.items()):
            yield name, {label: value}, count
    keys, kept = sums["key_tokens"], sums["kept_tokens"]
    if keys["sparse"]:
        yield "kept_share", {"layers": "sparse"}, kept["sparse"] / keys["sparse"]
    if keys.total():
        yield "kept_share", {"layers": "all"}, kept.total() / keys.total()


class Collector:
    """What prometheus_client asks when /metrics is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterator[Any]:
        """The metric families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[str, Any] = {}
        files = sorted(self.folder.glob("*.json"))
        for name, labels, value in samples(json.loads(file.read_text()) for file in files):
            if name not in families:
                family, text = (
                    (GaugeMetricFamily, GAUGES[name])
                    if name in GAUGES
                    else (CounterMetricFamily, COUNTERS[name])
                )
                families[name] = family(f"tokensparse_{name}", text, labels=list(labels))
            families[name].add_metric(list(labels.values()), value)
        yield from families.values()


def register() -> None:
    """In the first process of an engine: makes the folder and shows what comes to lie there."""
    if os.environ.get(FOLDER):
        return
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    folder = Path(tempfile.mkdtemp(prefix="tokensparse-metrics-"))
    os.environ[FOLDER] = str(folder)
    made_by = os.getpid()
    atexit.register(lambda: os.getpid() == made_by and shutil.rmtree(folder, ignore_errors=True))
    REGISTRY.register(Collector(folder))


def publish(report: Report) -> None:
    """Leaves this process's totals, whole or not at all. An engine does not stop for a full disk."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    file = Path(folder) / f"{os.getpid()}.json"
    try:
        file.with_suffix(".new").write_text(json.dumps(totals(report)))
        file.with_suffix(".new").replace(file)
    except OSError:
        pass
