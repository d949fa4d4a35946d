# SPDX-License-Identifier: MIT
"""Steps that a group's layers leave to the stock kernel, one like the other: written down once for all of
them, and told in each one's report when somebody asks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from .._report import Counts, LayerReport

# Adds to a report: prompts, why they were not the layer's or empty, and how many steps they came in.
Count = Callable[[LayerReport, Counts, str, int], None]

_NONE = Counts(0, 0, 0, 0)
builders: weakref.WeakSet[Any] = weakref.WeakSet()  # with a step that is still to be written down


def settle() -> None:
    """Has what came before written down."""
    for builder in list(builders):
        builder.settle()


class Ledger:
    """What a builder of metadata writes down."""

    def __init__(self) -> None:
        # By why, and whether there were prompts: steps, and their prompts together.
        self._steps: dict[tuple[str, bool], tuple[int, Counts]] = {}

    def add(self, prompts: Counts, why: str) -> None:
        """Writes a step down."""
        key = why, prompts.calls > 0
        steps, before = self._steps.get(key, (0, _NONE))
        self._steps[key] = steps + 1, before + prompts

    def tell(self, report: LayerReport, count: Count) -> None:
        """Adds the steps to a layer's report."""
        for (why, _), (steps, prompts) in list(self._steps.items()):
            count(report, prompts, why, steps)

    def clear(self) -> None:
        """Forgets the steps."""
        self._steps.clear()
