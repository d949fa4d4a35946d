# SPDX-License-Identifier: MIT
"""One call into the library: its params, whose memory it borrows, and where it runs."""

from __future__ import annotations

import ctypes
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import _arrays, _context, _library
from ._arrays import Paged, View, device_name
from ._context import Context
from ._library import InvalidArgument, check, lib


@dataclass(frozen=True)
class Selection:
    """Which tokens each set keeps.

    Attributes:
      indices: int32 `[num_seqs, S, L]`: ascending positions of set s of sequence b in the first
        kept[b] entries, anything behind them. S = Hq, Hkv or 1 by `share`; head h uses set
        h // (Hq // S).
      kept: int32 `[num_seqs]`: tokens each set of the sequence keeps; Tk means all (dense).

    Both live where the scores live; reading them of a CUDA array waits for the GPU.
    """

    indices: Any
    kept: Any

    def tokens(self, seq: int = 0, set: int = 0) -> Any:
        """Positions that one set of one sequence keeps, ascending, int32 `[kept]`."""
        return self.indices[seq, set, : int(self.kept[seq])]

    def check(self, k_lens: Sequence[int]) -> None:
        """Looks at every list: on a CUDA device the operations take them on trust.

        Args:
          k_lens: Tk of each sequence.

        Raises:
          InvalidArgument: kept out of 1 .. Tk, or a list that is not ascending, unique and in range.
        """
        if len(k_lens) != len(self.kept):
            raise InvalidArgument(
                f"k_lens: must have one length for each of {len(self.kept)} sequences, "
                f"has {len(k_lens)}"
            )
        for seq, k_len in enumerate(k_lens):
            kept = int(self.kept[seq])
            if not 1 <= kept <= min(k_len, self.indices.shape[2]):
                raise InvalidArgument(
                    f"kept[{seq}]: must lie in 1 .. {min(k_len, self.indices.shape[2])}, is {kept}"
                )
            if kept == k_len:
                continue
            lists = self.indices[seq, :, :kept]
            for set in range(lists.shape[0]):
                row = lists[set]
                if int(row[0]) < 0 or int(row[-1]) >= k_len or not bool((row[1:] > row[:-1]).all()):
                    raise InvalidArgument(
                        f"indices[{seq}, {set}]: must be ascending and unique in 0 .. {k_len - 1}"
                    )


def choice(name: str, value: str, allowed: dict[str, int]) -> int:
    if value not in allowed:
        raise InvalidArgument(f"{name}: must be one of {', '.join(allowed)}, is {value!r}")
    return allowed[value]


def _offsets(name: str, value: Sequence[int]) -> Any:
    values = [int(v) for v in value]
    if len(values) < 2 or any(not 0 <= v < 2**31 for v in values):
        raise InvalidArgument(
            f"{name}: must be the num_seqs + 1 cumulative lengths, is {values[:8]}"
        )
    return (ctypes.c_int32 * len(values))(*values)


class Call:
    """One call: its params, what must outlive it, and the device all arrays agree on."""

    def __init__(self, op: str, context: Context | None) -> None:
        self.op = op
        self.params = _library.new_params(op)
        self.context = context
        self.device: tuple[str, int] | None = None
        self.device_of = ""
        self.stream: int | None = None
        self.like: Any = None
        self.num_seqs = 1
        self.owners: list[Any] = []

    def look(self, x: Any, name: str) -> View:
        seen = _arrays.view(x, name)
        if self.device is None:
            self.device, self.device_of, self.like = seen.device, name, x
        elif seen.device != self.device:
            raise InvalidArgument(
                f"{name}: must be on {device_name(self.device)} like {self.device_of}, "
                f"is on {device_name(seen.device)}"
            )
        if self.stream is None:
            self.stream = seen.stream
        self.owners.append(seen)
        return seen

    def give(self, field: str, x: Any, name: str, **rules: Any) -> View | None:
        """Sets a tensor field; a Paged one too where the op takes it."""
        if isinstance(x, Paged):
            data = self.look(x.data, f"{name}.data")
            table = self.look(x.block_table, f"{name}.block_table")
            setattr(self.params, field, _arrays.paged_tensor(data, table, name))
            return None
        seen = self.look(x, name)
        setattr(self.params, field, _arrays.tensor(seen, name, **rules))
        return seen

    def set(self, **values: Any) -> None:
        """Sets number fields.

        Raises:
          InvalidArgument: a whole number that its field cannot hold; ctypes would wrap it around.
        """
        for field, value in values.items():
            whole = isinstance(getattr(self.params, field), int)
            try:
                setattr(self.params, field, operator.index(value) if whole else value)
            except TypeError:
                kind = "whole number" if whole else "number"
                raise TypeError(f"{field}: must be a {kind}, is {value!r}") from None
            if whole and getattr(self.params, field) != value:
                raise InvalidArgument(f"{field}: must fit in 32 bits, is {value}")

    def batch(self, q_offsets: Any, k_offsets: Any, k: Any) -> None:
        if (q_offsets is None) != (k_offsets is None):
            missing = "q_offsets" if q_offsets is None else "k_offsets"
            raise InvalidArgument(f"{missing}: must be given with the other offsets, is None")
        if q_offsets is None:
            if isinstance(k, Paged):
                raise InvalidArgument("k_offsets: must be given when k is Paged, is None")
            return
        q_lens, k_lens = _offsets("q_offsets", q_offsets), _offsets("k_offsets", k_offsets)
        if len(q_lens) != len(k_lens):
            raise InvalidArgument(
                f"k_offsets: must have as many entries as q_offsets ({len(q_lens)}), "
                f"has {len(k_lens)}"
            )
        self.owners += [q_lens, k_lens]
        self.num_seqs = len(q_lens) - 1
        self.params.batch = _library.Batch(q_lens, k_lens, self.num_seqs, 0)

    def sets(
        self, selected: Selection, field: str = "selected", argument: str = "selected"
    ) -> None:
        """Sets a field of index sets from what the caller calls `argument`."""
        indices = self.look(selected.indices, f"{argument}.indices")
        kept = self.look(selected.kept, f"{argument}.kept")
        _check_list(f"{argument}.indices", indices, "num_seqs, S, L", self.num_seqs)
        _check_list(f"{argument}.kept", kept, "num_seqs", self.num_seqs)
        strides = (indices.strides[1], indices.strides[0])
        setattr(
            self.params,
            field,
            _library.IndexSets(indices.data, kept.data, indices.shape[1], 0, *strides),
        )

    def blocks(self, sets: Any) -> None:
        """Sets the field `blocks` from what has the attributes that `attend` describes."""
        seen = {}
        lists = {
            "blocks": "num_seqs, S, M, L",
            "counts": "num_seqs, S, M",
            "columns": "num_seqs, S, C",
            "num_columns": "num_seqs, S",
        }
        for name, axes in lists.items():
            value = getattr(sets, name)
            if value is None and name in ("columns", "num_columns"):
                continue
            seen[name] = self.look(value, f"blocks.{name}")
            _check_list(f"blocks.{name}", seen[name], axes, self.num_seqs)
        blocks, counts = seen["blocks"], seen["counts"]
        for name, view in seen.items():
            if view.shape[1] != blocks.shape[1]:
                raise InvalidArgument(
                    f"blocks.{name}: must have as many sets as blocks.blocks "
                    f"({blocks.shape[1]}), has {view.shape[1]}"
                )
        if counts.shape[2] != blocks.shape[2]:
            raise InvalidArgument(
                f"blocks.counts: must have as many query blocks as blocks.blocks "
                f"({blocks.shape[2]}), has {counts.shape[2]}"
            )
        columns, num_columns = seen.get("columns"), seen.get("num_columns")
        if num_columns is not None and num_columns.shape[0] > 1:
            if num_columns.strides[0] != num_columns.shape[1]:
                raise InvalidArgument(
                    f"blocks.num_columns: must be contiguous, strides are "
                    f"{list(num_columns.strides)}"
                )
        field = self.params.blocks
        field.blocks, field.counts = blocks.data, counts.data
        field.columns = columns.data if columns else None
        field.num_columns = num_columns.data if num_columns else None
        field.num_sets = blocks.shape[1]
        field.seq_stride, field.set_stride, field.row_stride = blocks.strides[:3]
        field.count_seq_stride, field.count_set_stride = counts.strides[:2]
        if columns:
            field.column_seq_stride, field.column_set_stride = columns.strides[:2]
        if not 1 <= sets.block <= 512:
            raise InvalidArgument(
                "blocks.block: must be a multiple of 16 between 16 and 512, is "
                f"{sets.block}"
            )
        field.block = operator.index(sets.block)

    def run(self) -> None:
        if self.context is not None:
            self._check_context(self.context)
            self._run(self.context)
            return
        with _context.lease(self.device or ("cpu", 0), self.like) as context:
            self._run(context)

    def _check_context(self, context: Context) -> None:
        backend, _, ordinal, _ = context._arguments
        where = ("cuda", ordinal) if backend == "cuda" else ("cpu", 0)
        if self.device is not None and self.device != where:
            raise InvalidArgument(
                f"{self.device_of}: must be on {device_name(where)} for this context, "
                f"is on {device_name(self.device)}"
            )

    def _run(self, context: Context) -> None:
        handle = context.handle
        on_gpu = context._arguments[0] == "cuda"
        if on_gpu:
            context.set_stream(_current_stream(self.like, self.stream))
        if hasattr(self.params, "workspace_bytes"):
            size = ctypes.c_size_t()
            check(getattr(lib, f"tsp_{self.op}_workspace")(handle, self.params, size))
            self.params.workspace_bytes = size.value
            if size.value:
                if on_gpu:
                    room = _arrays.empty_like(self.like, (size.value,), "uint8", "q")
                    self.owners.append(room)
                    self.params.workspace = _arrays.view(room, "workspace").data
                else:
                    self.params.workspace = context.scratch(size.value)
        check(getattr(lib, f"tsp_{self.op}")(handle, self.params))


def _check_list(name: str, seen: View, axes: str, num_seqs: int) -> None:
    if seen.dtype != "int32":
        raise TypeError(f"{name}: dtype must be int32, is {seen.dtype}")
    if len(seen.shape) != len(axes.split(",")):
        raise InvalidArgument(f"{name}: must be [{axes}], is {list(seen.shape)}")
    if seen.shape[0] != num_seqs:
        raise InvalidArgument(
            f"{name}: must have one entry for each of {num_seqs} sequences, has {seen.shape[0]}"
        )
    if seen.shape[-1] > 1 and seen.strides[-1] != 1 or min(seen.strides) < 0:
        raise InvalidArgument(
            f"{name}: the last axis must be contiguous, strides are {list(seen.strides)}"
        )


def _current_stream(like: Any, producer: int | None) -> int:
    if producer is not None:
        return producer
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return torch.cuda.current_stream(like.device).cuda_stream
    return 0


def lengths(q_len: int, k_len: int, q_offsets: Any, k_offsets: Any) -> list[tuple[int, int]]:
    if q_offsets is None:
        return [(q_len, k_len)]
    q, k = list(map(int, q_offsets)), list(map(int, k_offsets))
    return [(q[i + 1] - q[i], k[i + 1] - k[i]) for i in range(len(q) - 1)]


def prefix_len(lengths: list[tuple[int, int]], window: int) -> int:
    return sum(max(0, tk - min(window, tq)) for tq, tk in lengths)


def num_sets(share: str, q_heads: int, kv_heads: int) -> int:
    return {"head": q_heads, "kv_group": kv_heads, "layer": 1}[share]


def k_heads(k: Any) -> int:
    shape = (k.data if isinstance(k, Paged) else k).shape
    return int(shape[-2])


def empty_sets(call: Call, share: str, q_heads: int, kv_heads: int, longest: int) -> Selection:
    shape = (call.num_seqs, num_sets(share, q_heads, kv_heads), max(longest, 1))
    return Selection(
        _arrays.empty_like(call.like, shape, "int32", "q"),
        _arrays.empty_like(call.like, (call.num_seqs,), "int32", "q"),
    )
