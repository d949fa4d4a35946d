# SPDX-License-Identifier: MIT
"""What the two vLLM backends share: who serves which request of a step, and the served calls."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from .. import methods
from .._arrays import Paged
from .._environment import SERVE_ROWS, serve_pairs, serve_rows, setting_from_environment, variables_in
from .._library import Unsupported, version
from .._model import check_setting, numbers, sparse_layers
from .._report import TOO_SHORT, Counts, LayerReport, Report
from .._served import ServedLayer
from ..setting import Setting
from . import metrics
from .ledger import Count, Ledger, settle
from .tally import Tallies, tallies_of

SHORT = "short calls and decode"
GRAPH = "replayed in a CUDA graph"

_log = logging.getLogger("vllm.tokensparse")
_LOG_EVERY = 10.0  # seconds
_made: weakref.WeakSet[Layer] = weakref.WeakSet()
# By name, as they are called first; those of an engine that is gone are gone, too.
_layers: weakref.WeakValueDictionary[str, Layer] = weakref.WeakValueDictionary()
_last_log = 0.0
_PUBLISH_EVERY = 1.0  # seconds
_follower: threading.Thread | None = None
_wanted = False  # since the follower last looked
_follower_lock = threading.Lock()
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

    @functools.cached_property
    def all_counts(self) -> Counts:
        """Of the prompts, added up once for all layers."""
        return Counts.of(self.prompts)

    @functools.cached_property
    def exact_counts(self) -> Counts:
        """Of those in the stock runs."""
        return Counts.of(self.exact)


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
    least_pairs: int = 0,
    pays: Callable[[int, int], bool] | None = None,
) -> Step:
    """Splits a batch: requests with at least `least` rows are ours, the rest stock; those that are
    long enough for sparse layers apart from those that are not, and from those of another coverage.

    Args:
      starts: cumulative query rows, [requests + 1].
      seq_lens: keys of each request, context and query.
      exact_is_ours: else requests that are too short for sparse layers are stock, too.
      least_pairs: query rows times keys of these requests, all together, below which they are stock.
      pays: of query rows and keys whether they may be; None = as the setting says.
    """

    requests = [i for i in range(len(seq_lens)) if starts[i + 1] > starts[i]]
    rows_of = {i: starts[i + 1] - starts[i] for i in requests}
    if exact_is_ours and least_pairs:
        exact_is_ours = least_pairs <= sum(
            rows * seq_lens[i]
            for i, rows in rows_of.items()
            if rows >= least and not setting.is_long_enough(rows, seq_lens[i])
        )

    def kind(request: int) -> tuple[bool, bool, float]:
        rows, keys = rows_of[request], seq_lens[request]
        long = rows >= least and setting.is_long_enough(rows, keys)
        long = long and (pays is None or pays(rows, keys))
        coverage = setting.coverage_of(keys) if long else 0.0
        return long or (exact_is_ours and rows >= least), long, coverage

    runs: dict[bool, list[Run]] = {True: [], False: []}
    kinds = {i: kind(i) for i in requests}
    for (served, long, _), group in groupby(requests, kinds.__getitem__):
        runs[served].append(_run(list(group), starts, seq_lens, long))
    sizes = [(rows, seq_lens[i], kinds[i][0]) for i, rows in rows_of.items()]
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
        self.config = config
        self.configure()
        _made.add(self)
        _say_what_happens(self.setting, config)

    def configure(self) -> None:
        """Takes what the environment asks for."""
        self.setting = setting_from_environment(config=self.config)
        self.key = sys.intern(repr(self.setting))  # layers of one setting share what is planned
        self.least = serve_rows()  # query rows of a request that is ours
        self.least_pairs = serve_pairs("vllm") if methods.default() == "tsa" else 0
        self.served: ServedLayer | None = None
        self.ledgers: list[tuple[Ledger, Count]] = []  # what is counted for it and others together
        # Where its calls add up what they kept on a GPU, and by how many heads its pairs are divided.
        self.tallies: Tallies | None = None
        self.slot, self.heads = 0, 1

    def named(self, name: str) -> LayerReport:
        """The report of the layer, whose name only the first call tells."""
        if self.served is None:
            found = re.search(r"layers\.(\d+)\.", name) or re.search(r"(\d+)", name)
            index = int(found.group(1)) if found else 0
            self.served = ServedLayer(index, self.setting, self.config, methods.default())
            _layers[name] = self
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
        if query.device.type == "cpu" and self.served.index == self.served.last_sparse:
            log_kept_share()  # what was kept on a GPU is there: to read it would be to wait

    def tally(self, device: torch.device, heads: int) -> int:
        """Address of the layer's counters on a GPU."""
        if self.tallies is None:
            self.tallies, self.heads = tallies_of(device), heads
            self.slot = self.tallies.new()
        return self.tallies.address(self.slot)

    def told(self, rows: list[list[int]] | None) -> LayerReport:
        """Its report with what `rows` of the tallies and its ledgers say."""
        if self.tallies is None or rows is None:
            found = self.served.report.copy()
        else:
            kept, pairs = rows[self.slot]
            found = self.served.report.with_tally(kept, pairs / self.heads)
        for ledger, count in self.ledgers:
            ledger.tell(found, count)
        return found

    def clear(self) -> None:
        """Forgets its calls; what tallies hold of them is theirs."""
        self.served.report.clear()
        for ledger, _ in self.ledgers:
            ledger.clear()


def serve_step(
    layer: Layer,
    step: Step,
    query: torch.Tensor,
    pages: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    metadata: Any,
    output: torch.Tensor,
    stock: Callable[[int, Run], None],
    why: str = TOO_SHORT,
) -> str:
    """Writes the output rows of a batch: our runs, and by `stock` the others.

    Args:
      query, output: [tokens, heads, dim].
      pages: of K and V, [num_blocks, block_size, kv heads, dim].
      metadata: of the step; all its layers share it.
      stock: called with the number of a run of `step.stock`, and the run.
      why: prompts are in these runs.

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
    serve_the_rest(report, step, stock, why)
    return ""


def serve_the_rest(
    report: LayerReport, step: Step, stock: Callable[[int, Run], None], why: str = TOO_SHORT
) -> None:
    """The runs of a step that are not ours, by `stock`: prompts because of `why`."""
    for index, run in enumerate(step.stock):
        if not step.exact:
            report.stock[SHORT] += 1
        stock(index, run)
    if step.exact:
        report.count_stock(step.exact_counts, why)


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


def log_kept_share(found: Report | None = None) -> None:
    """One line every ten seconds of work, for people who watch a server."""
    global _last_log
    now = time.monotonic()
    if now - _last_log < _LOG_EVERY:
        return
    _last_log = now
    found = collect(reset=False) if found is None else found
    whole = sum(layer.kept_share is not None for layer in found)  # not those with a window
    _log.info(
        "tokensparse: kept %.1f %% of the tokens in %d sparse layers, %.1f %% in all %d that see whole prompts",
        100 * (found.kept_share or 1),
        len(found.named),
        100 * (found.kept_share_of_all or 1),
        whole,
    )


def publish_behind() -> None:
    """A thread publishes and logs what calls counted, a GPU's as the copies of it arrive, and ends when
    nothing changes any more. It asks nothing of the GPU, and no step waits for it."""
    global _follower, _wanted
    follower = _follower
    if _wanted and follower is not None and follower.is_alive():  # it will look once more
        return
    with _follower_lock:
        _wanted = True
        if _follower is None or not _follower.is_alive():  # none, or of the process before a fork
            _follower = threading.Thread(target=_follow, daemon=True, name="tokensparse")
            _follower.start()


def _follow() -> None:
    global _follower, _wanted
    before = None
    while True:
        with _follower_lock:
            _wanted = False
        time.sleep(_PUBLISH_EVERY)
        try:
            found = collect(reset=False, wait=False)
        except (RuntimeError, IndexError, AttributeError):
            continue  # meanwhile a layer counted its first call, or took another setting
        told = metrics.totals(found)
        if told == before:
            with _follower_lock:
                if _wanted:
                    continue
                _follower = None
                return
        before = told
        metrics.publish(found)
        if found.kept_share is not None:
            log_kept_share(found)


def collect(reset: bool, wait: bool = True) -> Report:
    """The reports of this process's layers.

    Args:
      wait: for the GPU; else what sparse calls kept there may be of a moment ago.
    """
    if wait:
        settle()
    layers = list(_layers.values())
    tallies = {layer.tallies for layer in layers} - {None}
    rows = {found: found.read() if wait else found.behind() for found in tallies}
    answer = Report([layer.told(rows.get(layer.tallies)) for layer in layers])
    if reset:
        for layer in layers:
            layer.clear()
        for found in tallies:
            found.clear()
    return answer


def configure(variables: Mapping[str, str]) -> None:
    """Layers take the setting that these TOKENSPARSE_ variables ask for, in the place of those that
    the environment had; what was counted is forgotten."""
    settle()
    for tallies in {layer.tallies for layer in _layers.values()} - {None}:
        tallies.forget()
    for name in variables_in(os.environ):
        del os.environ[name]
    os.environ.update(variables)
    for layer in list(_made):
        layer.configure()
    for name, layer in list(_layers.items()):  # a CUDA graph that is replayed calls nobody
        layer.named(name)
