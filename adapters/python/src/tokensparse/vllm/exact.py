# SPDX-License-Identifier: MIT
"""Exact runs of a step on the CPU: the step's first layer fills in the calls, every layer runs them with
addresses of its own. A model's weights go through the caches between two layers, so each line of Python
that a layer does not run is worth five of a loop that does nothing else."""

from __future__ import annotations

from typing import Any

import torch

from .. import methods
from .._arrays import Paged
from .._exact import ExactCall
from .._report import Counts
from ..methods.tsa import why_dense
from ..setting import Setting
from .steps import Run

Pages = tuple[torch.Tensor, torch.Tensor]


class ExactRun:
    """A run that attends to everything.

    Args:
      query, output: [tokens, heads, dim] of the whole batch.
      kv_cache, pages: the cache of a layer, and its K and V as [num_blocks, block, kv heads, dim].
      block_table: of the whole batch.
    """

    def __init__(
        self,
        run: Run,
        setting: Setting,
        scale: float,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        pages: Pages,
        block_table: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        table = block_table[run.first : run.past]
        q, out = query[run.rows], output[run.rows]
        k, v = (Paged(x, table) for x in pages)
        precision = setting.products(str(query.dtype))
        self._call = ExactCall((q, k, v, out), scale, precision, run.q_offsets, run.k_offsets)
        self._q_start = q.data_ptr() - query.data_ptr()
        self._starts = [x.data_ptr() - kv_cache.data_ptr() for x in pages]
        self._out_start = out.data_ptr() - output.data_ptr()
        state = methods.State(
            setting, True, None, precision, scale, run.q_offsets, run.k_offsets
        )
        sizes = state.lengths(query, pages[0])
        self.counts = Counts.of(sizes)
        dense = why_dense(query, pages[0], state)
        self.reason = dense.reason if dense else ""  # in a layer that the setting names

    def __call__(self, query: int, kv_cache: int, output: int) -> None:
        """Attends in one layer, whose tensors begin at these addresses."""
        k, v = self._starts
        self._call.run_at(
            (query + self._q_start, kv_cache + k, kv_cache + v, output + self._out_start)
        )
