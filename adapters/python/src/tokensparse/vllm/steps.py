# SPDX-License-Identifier: MIT
"""What the two vLLM backends share: who serves which request of a step, and the served calls."""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from .. import methods
from .._arrays import Paged
from .._environment import SERVE_ROWS, serve_rows, setting_from_environment
from .._library import Unsupported, version
from .._model import check_setting, numbers, sparse_layers
from .._report import LayerReport, Report
from .._served import ServedLayer
from ..setting import Setting
from . import metrics

SHORT = "short calls and decode"
EXACT = "exact layer"
TOO_SHORT = "too short for sparse layers to gain"

_log = logging.getLogger("vllm.tokensparse")
_LOG_EVERY = 10.0  # seconds
_layers: dict[str, ServedLayer] = {}
_last_log = 0.0
_PUBLISH_EVERY = 1.0  # seconds
_last_published = 0.0
_said = False


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
    """A batch split by who serves it.

    Attributes:
      ours, stock: the runs.
      prompts: query rows and keys of each request with enough rows to be ours.
      exact: of these, the ones in the stock runs.
    """

    ours: tuple[Run, ...]
    stock: tuple[Run, ...]
    prompts: tuple[tuple[int, int], ...] = ()
    exact: tuple[tuple[int, int], ...] = ()


def _run(requests: list[int], starts: list[int], seq_lens: list[int], long: bool) -> Run:
    first, past = requests[0], requests[-1] + 1
    lengths = [starts[i + 1] - starts[i] for i in requests]
    q_offsets, k_offsets = [0], [0]
    for request, length in zip(requests, lengths):
        q_offsets.append(q_offsets[-1] + length)
        k_offsets.append(k_offsets[-1] + seq_lens[request])
    rows = slice(starts[first], starts[past])
    return Run(first, past, rows, tuple(q_offsets), tuple(k_offsets), max(lengths), long)


def plan(
    starts: list[int],
    seq_lens: list[int],
    setting: Setting,
    least: int = SERVE_ROWS,
    exact_is_ours: bool = True,
) -> Step:
    """Splits a batch: requests with at least `least` rows are ours, the rest stock; those that are
    long enough for sparse layers apart from those that are not.

    Args:
      starts: cumulative query rows, [requests + 1].
      seq_lens: keys of each request, context and query.
      exact_is_ours: else requests that are too short for sparse layers are stock, too.
    """

    def kind(request: int) -> tuple[bool, bool]:
        rows = starts[request + 1] - starts[request]
        long = rows >= least and setting.is_long_enough(rows, seq_lens[request])
        return long or (exact_is_ours and rows >= least), long

    runs: dict[bool, list[Run]] = {True: [], False: []}
    requests = [i for i in range(len(seq_lens)) if starts[i + 1] > starts[i]]
    for (served, long), group in groupby(requests, kind):
        runs[served].append(_run(list(group), starts, seq_lens, long))
    sizes = [(starts[i + 1] - starts[i], seq_lens[i], kind(i)[0]) for i in requests]
    prompts = [size for size in sizes if size[0] >= least]
    return Step(
        tuple(runs[True]),
        tuple(runs[False]),
        tuple(size[:2] for size in prompts),
        tuple(size[:2] for size in prompts if not size[2]),
    )


class Layer:
    """One attention layer of the engine.

    Args:
      config: of the model, `hf_text_config`.

    Raises:
      InvalidArgument: what the environment asks for is wrong, or not for this model.
    """

    def __init__(self, config: Any) -> None:
        self.setting = setting_from_environment(config=config)
        self.least = serve_rows()  # query rows of a request that is ours
        self.served: ServedLayer | None = None
        self._config = config
        _say_what_happens(self.setting, config)

    def named(self, name: str) -> LayerReport:
        """The report of the layer, whose name only the first call tells."""
        if self.served is None:
            found = re.search(r"layers\.(\d+)\.", name) or re.search(r"(\d+)", name)
            index = int(found.group(1)) if found else 0
            self.served = ServedLayer(index, self.setting, self._config, methods.default())
            _layers[name] = self.served
        return self.served.report

    def serve(
        self,
        run: Run,
        query: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        block_table: torch.Tensor,
        scale: float,
        output: torch.Tensor,
        memory: dict[str, Any],
    ) -> None:
        """Writes output rows of the requests of a run.

        Args:
          query, output: [tokens, heads, dim] of the whole batch.
          k_pages, v_pages: [num_blocks, block_size, kv heads, dim], any strides.
          block_table: int32 [requests, max_blocks] of the whole batch.
          memory: of the method, for this run of this step.
        """
        table = block_table[run.first : run.past]
        self.served.attend(
            query[run.rows],
            Paged(k_pages, table),
            Paged(v_pages, table),
            output[run.rows],
            scale,
            memory,
            run.q_offsets,
            run.k_offsets,
        )
        if query.device.type != "cpu":
            return  # what was kept is on the GPU: to read it would be to wait
        if self.served.index == self.served.last_sparse:
            log_kept_share(self.served)
        if self.served.index == max(layer.index for layer in _layers.values()):
            metrics.publish(collect(reset=False))


def serve_step(
    layer: Layer,
    step: Step,
    query: torch.Tensor,
    pages: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    metadata: Any,
    output: torch.Tensor,
    stock: Callable[[int, Run], None],
) -> str:
    """Writes the output rows of a batch: our runs, and by `stock` the others.

    Args:
      query, output: [tokens, heads, dim].
      pages: of K and V, [num_blocks, block_size, kv heads, dim].
      metadata: of the step; all its layers share it.
      stock: called with the number of a run of `step.stock`, and the run.

    Returns:
      Why the backend cannot serve the layer; nothing is written then. Empty when it did.
    """
    report = layer.served.report
    memory = metadata.__dict__.setdefault("_tokensparse_memory", [{} for _ in step.ours])
    try:
        for run, notes in zip(step.ours, memory):
            layer.serve(run, query, *pages, metadata.block_table, scale, output, notes)
    except Unsupported as error:  # a shape that the backend cannot serve
        report.stock[str(error)] += 1
        return str(error)
    for index, run in enumerate(step.stock):
        if not step.exact:
            report.stock[SHORT] += 1
        stock(index, run)
    if step.exact:
        report.count_stock(step.exact, TOO_SHORT)
    return ""


def _say_what_happens(setting: Setting, config: Any) -> None:
    """One line in each process that has layers, when the first is made."""
    global _said
    if _said:
        return
    _said = True
    caution = check_setting(setting, config)
    count, of = len(sparse_layers(setting, config)), numbers(config).get("num_layers", "?")
    _log.info(
        "tokensparse %s is active: %s%s; prompts of %d query rows and more; TOKENSPARSE_DISABLE=1 "
        "switches it off",
        version(),
        setting,
        f" ({count} of {of} layers)" if setting.is_sparse else "",
        serve_rows(),
    )
    if caution:
        _log.warning("tokensparse: %s", caution)


def log_kept_share(layer: ServedLayer) -> None:
    """One line every ten seconds of work, for people who watch a server."""
    global _last_log
    now = time.monotonic()
    if now - _last_log < _LOG_EVERY:
        return
    _last_log = now
    found = collect(reset=False)
    _log.info(
        "tokensparse: kept %.1f %% of the tokens in %d sparse layers, %.1f %% in all %d",
        100 * (found.kept_share or 1),
        len(found.named),
        100 * (found.kept_share_of_all or 1),
        layer.num_layers or len(found),
    )


def publish_now_and_then() -> None:
    """For calls that only the stock kernel sees, of which there is one a layer and token."""
    global _last_published
    now = time.monotonic()
    if now - _last_published >= _PUBLISH_EVERY:
        _last_published = now
        metrics.publish(collect(reset=False))


def collect(reset: bool) -> Report:
    """The reports of this process's layers."""
    reports = [layer.report for layer in _layers.values()]
    answer = Report(copy.deepcopy(reports))
    if reset:
        for report in reports:
            report.clear()
    return answer
