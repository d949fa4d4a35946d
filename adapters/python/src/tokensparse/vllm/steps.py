# SPDX-License-Identifier: MIT
"""What the two vLLM backends share: who serves which request of a step, and the served calls."""

from __future__ import annotations

import copy
import logging
import re
import time
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from .. import ops
from .._arrays import Paged
from .._report import LayerReport, Report
from ..options import Options

_log = logging.getLogger("vllm.tokensparse")
_LOG_EVERY = 10.0  # seconds
_reports: dict[str, LayerReport] = {}
_last_log = 0.0


@dataclass(frozen=True)
class Run:
    """Neighbouring requests of a batch that one kernel serves."""

    first: int  # request
    past: int
    rows: slice
    q_offsets: tuple[int, ...]  # from 0
    k_offsets: tuple[int, ...]
    max_query: int
    long: bool = False  # enough for sparse layers to gain


@dataclass(frozen=True)
class Step:
    """A batch split by who serves it."""

    ours: tuple[Run, ...]
    stock: tuple[Run, ...]


def _run(requests: list[int], starts: list[int], seq_lens: list[int], long: bool) -> Run:
    first, past = requests[0], requests[-1] + 1
    lengths = [starts[i + 1] - starts[i] for i in requests]
    q_offsets, k_offsets = [0], [0]
    for request, length in zip(requests, lengths):
        q_offsets.append(q_offsets[-1] + length)
        k_offsets.append(k_offsets[-1] + seq_lens[request])
    rows = slice(starts[first], starts[past])
    return Run(first, past, rows, tuple(q_offsets), tuple(k_offsets), max(lengths), long)


def plan(starts: list[int], seq_lens: list[int], options: Options) -> Step:
    """Splits a batch: requests with at least `min_query` rows are ours, the rest stock; those that
    are long enough for sparse layers apart from those that are not.

    Args:
      starts: cumulative query rows, [requests + 1].
      seq_lens: keys of each request, context and query.
    """

    def kind(request: int) -> tuple[bool, bool]:
        rows = starts[request + 1] - starts[request]
        served = rows >= options.min_query
        return served, served and options.is_long_enough(rows, seq_lens[request])

    runs: dict[bool, list[Run]] = {True: [], False: []}
    requests = [i for i in range(len(seq_lens)) if starts[i + 1] > starts[i]]
    for (served, long), group in groupby(requests, kind):
        runs[served].append(_run(list(group), starts, seq_lens, long))
    return Step(tuple(runs[True]), tuple(runs[False]))


class Layer:
    """One attention layer as tokensparse serves it."""

    def __init__(self, num_layers: int | None) -> None:
        self.options = Options.from_environment()
        self.num_layers = num_layers
        self.report: LayerReport | None = None
        self.arguments: dict[bool, dict[str, Any]] = {}  # of prefill, for runs that are `long`
        self.sparse = False

    def named(self, name: str, dtype: torch.dtype) -> LayerReport:
        """The report of the layer, whose name and dtype only the first call tells."""
        if self.report is None:
            found = re.search(r"layers\.(\d+)\.", name) or re.search(r"(\d+)", name)
            index = int(found.group(1)) if found else 0
            if self.options.caution and not _reports:
                _log.warning("tokensparse: %s", self.options.caution)
            self.sparse = self.options.is_sparse(index, self.num_layers)
            for long in (False, True):
                arguments = self.options.prefill_arguments(long and self.sparse, str(dtype))
                self.arguments[long] = arguments
            self.report = _reports.setdefault(name, LayerReport(index))
        return self.report

    def serve(
        self,
        run: Run,
        query: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        block_table: torch.Tensor,
        scale: float,
        output: torch.Tensor,
    ) -> None:
        """Writes output rows of the requests of a run.

        Args:
          query, output: [tokens, heads, dim] of the whole batch.
          k_pages, v_pages: [num_blocks, block_size, kv heads, dim], any strides.
          block_table: int32 [requests, max_blocks] of the whole batch.
        """
        table = block_table[run.first : run.past]
        _, kept = ops.prefill(
            query[run.rows],
            Paged(k_pages, table),
            Paged(v_pages, table),
            q_offsets=run.q_offsets,
            k_offsets=run.k_offsets,
            scale=scale,
            out=output[run.rows],
            return_kept=True,
            **self.arguments[run.long],
        )
        on_host = query.device.type == "cpu"
        kept = int(kept.sum()) if on_host else kept.sum()
        self.report.count(run.q_offsets[-1], run.k_offsets[-1], kept, self.sparse)
        self.report.served += run.past - run.first - 1
        self.report.too_short += (run.past - run.first) * (self.sparse and not run.long)
        if on_host and self.sparse:
            log_kept_share()


def log_kept_share() -> None:
    """One line every ten seconds of work, for people who watch a server."""
    global _last_log
    now = time.monotonic()
    if now - _last_log < _LOG_EVERY:
        return
    _last_log = now
    found = collect(reset=False)
    _log.info(
        "tokensparse: kept %.1f %% of the tokens in %d sparse layers of %d",
        100 * (found.kept_share or 1),
        sum(r.sparse for r in found),
        len(found),
    )


def collect(reset: bool) -> Report:
    """The reports of this process's layers."""
    found = sorted(_reports.values(), key=lambda r: r.layer)
    answer = Report(copy.deepcopy(found))
    if reset:
        for report in found:
            report.clear()
    return answer
