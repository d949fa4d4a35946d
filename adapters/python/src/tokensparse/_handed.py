# SPDX-License-Identifier: MIT
"""A forward pass of transformers whose exact calls are the stock kernel's: what they have in common is
found by the first of them, and they are counted when the pass is over."""

from __future__ import annotations

import weakref
from typing import Any

from transformers import modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ._report import Counts
from ._stock import end_of, mask_for, sdpa

_alive: weakref.WeakSet[Handed] = weakref.WeakSet()


class Handed:
    """Belongs to a forward's spans, and ends with them.

    Attributes:
      stored: what the configs say of the layers that may follow without a look.
      shape, keys: of their query, and how many keys there are.
      why: they are exact, by whether the setting names them.
      attend: the kernel, which takes the `mask`.
      positions: of the tokens, where that kernel does without: in a tensor of several sequences one
        behind the other it would look for their ends, on a GPU by waiting for it, in every layer.
      seen: the layers that were handed over.
    """

    def __init__(self, layer: Any, counts: Counts, query: Any, key: Any, spans: Any) -> None:
        self.stored, self.counts = layer.stored, counts
        self.shape, self.keys = query.shape, key.shape[2]
        self.why: dict[bool, str] = {}
        self.attend = sdpa if layer.stock_is_sdpa else ALL_ATTENTION_FUNCTIONS[layer.stock]
        self.mask = mask_for(layer.stock, spans, query, key)
        self.positions: Any = None
        self.seen: list[Any] = []
        _alive.add(self)

    def settle(self) -> None:
        """Counts the calls that were handed over."""
        while self.seen:
            report = self.seen.pop().report
            report.count_stock(self.counts, self.why[report.named])

    __del__ = settle


def hand_over(
    layer: Any, why: str, counts: Counts, query: Any, key: Any, spans: Any, positions: Any
) -> Handed | None:
    """What says that an exact call of a layer is the stock kernel's, and why; None where there are more
    keys than that is to see, or it follows what another config says."""
    handed = getattr(spans, "tokensparse_handed", None)
    if handed is None:
        if end_of(spans, query) != key.shape[2]:
            return None
        handed = spans.tokensparse_handed = Handed(layer, counts, query, key, spans)
        if not _is_needed(positions, handed.attend, query):
            handed.positions = positions
    same = handed.stored is layer.stored and handed.shape == query.shape
    if not same or handed.keys != key.shape[2]:
        return None
    handed.why[layer.report.named] = why
    return handed


def settle_all() -> None:
    """Counts the calls of passes that are not over, or whose spans somebody keeps."""
    for handed in list(_alive):
        handed.settle()


def _is_needed(positions: Any, attend: Any, query: Any) -> bool:
    """Whether a kernel needs the positions of the tokens: transformers' own looks in them for the ends of
    sequences, and at nothing else."""
    packed = getattr(modeling_flash_attention_utils, "_is_packed_sequence", None)
    if positions is None or packed is None or attend is not flash_attention_forward:
        return positions is not None
    return bool(packed(positions, batch_size=query.shape[0]))


def is_one_position(positions: Any, attend: Any) -> bool:
    """Whether they are that of a single token, where the kernel looks for the ends of sequences."""
    return positions is not None and attend is flash_attention_forward and positions.numel() == 1
