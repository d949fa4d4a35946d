# SPDX-License-Identifier: MIT
"""What a step's metadata says to the layers of the CUDA backend."""

from __future__ import annotations

from typing import Any

from .._report import Counts
from .planned import Planned
from .steps import Step


class Prompts:
    """Of a step with prompts: the lengths on the host, and what its layers made of them.

    Attributes:
      starts, seq_lens: see `steps.plan`.
      ours: whether a layer may have a part in it that is ours. Else none looks at it.
      seen: whether a layer has come by. In a replayed CUDA graph none does.
      captured: whether a CUDA graph records them.
      masked: whether there are masks that are not for us.
      steps: by what settings ask for.
      planned: the calls, by the number of the run and by all that layers may differ in.
    """

    def __init__(self, starts: list[int], seq_lens: list[int]) -> None:
        self.starts, self.seq_lens = starts, seq_lens
        self.ours = self.seen = self.captured = self.masked = False
        self.steps: dict[Any, Step] = {}
        self.planned: dict[Any, Planned] = {}

    def counts(self, least: int) -> Counts:
        """Of the requests with at least `least` rows."""
        rows = [past - first for first, past in zip(self.starts, self.starts[1:])]
        return Counts.of([size for size in zip(rows, self.seq_lens) if size[0] >= least])
