# SPDX-License-Identifier: MIT
"""The operation `estimate`: block patterns, their parameters, and the lists they give."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import _arrays, _library
from ._arrays import Paged
from ._call import Call, Selection, choice, k_heads, lengths, num_sets
from ._context import Context
from ._library import InvalidArgument, lib
from ._patterns import not_a_parameter, parameters_of

Pattern = Literal["xattention", "flexprefill", "minference", "pooled", "flash"]


@dataclass(frozen=True)
class Blocks:
    """Which key blocks each query block reads, in entries of the head's index list or positions.

    Attributes:
      blocks: int32 `[num_seqs, S, M, N]`: ascending key blocks of query block m of set s of
        sequence b in the first counts[b, s, m] entries, anything behind them.
      counts: int32 `[num_seqs, S, M]`.
      columns: int32 `[num_seqs, S, C]`: single entries that every query block reads too, the first
        num_columns[b, s] of them; None = none.
      num_columns: int32 `[num_seqs, S]`, or None.
      block: entries of a block.
    """

    blocks: Any
    counts: Any
    columns: Any
    num_columns: Any
    block: int


def pattern_of(kind: str, sets: int, options: dict[str, Any], owners: list[Any]) -> Any:
    """The C struct of a pattern: the method's own parameters, and what `options` says."""
    pattern = _library.Pattern()
    code = choice("pattern", kind, {k: v for k, v in _library.PATTERNS.items() if v})
    lib.tsp_pattern_init(pattern, code)
    for name, value in options.items():
        if name in ("kind", "thresholds") or name not in dict(_library.Pattern._fields_):
            raise TypeError(f"{name}: no parameter of a block pattern")
        if name not in parameters_of(kind):
            raise not_a_parameter(name, kind, value)
        if name == "threshold" and isinstance(value, Sequence):
            if len(value) != sets:
                raise InvalidArgument(f"threshold: must be one number or {sets}, has {len(value)}")
            values = (ctypes.c_float * sets)(*value)
            owners.append(values)
            pattern.thresholds = ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
        elif name == "share":
            pattern.share = choice("share", value, _library.SHARES)
        elif isinstance(getattr(pattern, name), int):
            number = operator.index(value)
            setattr(pattern, name, number)
            if getattr(pattern, name) != number:
                raise InvalidArgument(f"{name}: must fit in 32 bits, is {number}")
        else:
            setattr(pattern, name, value)
    return pattern


def empty_blocks(call: Call, pattern: Any, sets: int, tq: int, tk: int) -> Blocks:
    """Room for the lists of sequences of at most tq queries and tk keys; set in call.params."""
    block = max(pattern.block, 1)
    m, n = max(-(-tq // block), 1), max(-(-tk // block), 1)
    c = max(min(max(pattern.vertical, 30), tk), 1)
    lines = pattern.kind == _library.PATTERNS["minference"]

    def room(*shape: int) -> Any:
        return _arrays.empty_like(call.like, (call.num_seqs, *shape), "int32", "q")

    out = Blocks(
        room(sets, m, n),
        room(sets, m),
        room(sets, c) if lines else None,
        room(sets) if lines else None,
        pattern.block,
    )
    data = [
        None if x is None else call.look(x, "blocks").data
        for x in (out.blocks, out.counts, out.columns, out.num_columns)
    ]
    call.params.blocks = _library.BlockSets(
        *data, pattern.block, sets, n, m * n, sets * m * n, m, sets * m, c, sets * c
    )
    return out


def estimate(
    q: Any,
    k: Any,
    pattern: Pattern,
    *,
    selected: Selection | None = None,
    scale: float | None = None,
    precision: Literal["f32", "bf16"] = "f32",
    q_offsets: Sequence[int] | None = None,
    k_offsets: Sequence[int] | None = None,
    context: Context | None = None,
    **options: Any,
) -> Blocks:
    """Which key blocks each query block has to read.

    Args:
      q: `[Tq, Hq, D]`.
      k: `[Tk, Hkv, D]` or Paged.
      pattern: "xattention", "flexprefill", "minference", "pooled" or "flash".
      selected: estimate on the tokens that each set keeps; None = on all.
      options: what differs from the authors' numbers. All methods: block, share, sink_blocks,
        local_blocks, last_blocks. Their own: xattention stride, threshold (a number or one for each
        set of blocks); flexprefill gamma, tau, min_budget; minference vertical, slash; pooled
        threshold; flash alpha. One of another method is refused.

    Returns:
      Blocks, in entries of the lists of `selected` where it is given, in positions else.
    """
    call = Call("estimate", context)
    seen = call.give("q", q, "q")
    call.give("k", k, "k")
    share = options.get("share", "head")
    choice("share", share, _library.SHARES)
    sets = num_sets(share, seen.shape[1], k_heads(k))
    call.params.pattern = pattern_of(pattern, sets, options, call.owners)
    call.batch(q_offsets, k_offsets, k)
    call.set(scale=scale or 0.0, precision=choice("precision", precision, _library.PRECISIONS))
    if selected is not None:
        call.sets(selected)
    k_len = 0 if isinstance(k, Paged) else _arrays.view(k, "k").shape[0]
    sizes = lengths(seen.shape[0], k_len, q_offsets, k_offsets)
    longest = (max(tq for tq, _ in sizes), max(tk for _, tk in sizes))
    blocks = empty_blocks(call, call.params.pattern, sets, *longest)
    call.run()
    return blocks
