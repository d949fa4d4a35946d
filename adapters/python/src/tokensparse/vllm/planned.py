# SPDX-License-Identifier: MIT
"""Sparse layers on CUDA: a step's first layer fills in the call, every layer runs it with its own
addresses: one call into the library, no memory asked for, nothing read back."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from .. import _library
from .._arrays import Paged
from .._blocks import pattern_of
from .._call import Call, choice, num_sets
from .._context import Context
from .._library import check, lib
from .._report import Counts
from ..setting import Setting
from .steps import Run

Pages = tuple[torch.Tensor, torch.Tensor]


class Room:
    """Where the calls of one stream run: their context, and workspace that grows as they need it."""

    def __init__(self, device: torch.device, stream: int) -> None:
        cuda = device.type == "cuda"
        self.context = Context("cuda" if cuda else "cpu", device=device.index or 0)
        if cuda:
            self.context.set_stream(stream)
        self.device = device
        self.workspace = torch.empty(0, dtype=torch.uint8, device=device)

    def at_least(self, size: int) -> int:
        """Address of `size` bytes, aligned to 64."""
        if self.workspace.numel() < size + 64:
            self.workspace = torch.empty(0, dtype=torch.uint8, device=self.device)  # not both at once
            spare = _spare.pop(self.device, self.workspace)
            if spare.numel() < size + 64:
                spare = torch.empty(size + 64, dtype=torch.uint8, device=self.device)
            self.workspace = spare
        return (self.workspace.data_ptr() + 63) & ~63


_spare: dict[torch.device, torch.Tensor] = {}  # workspace that was set aside
_rooms: dict[tuple[torch.device, int], Room] = {}


def room_of(device: torch.device) -> Room:
    """That of the current stream."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    found = _rooms.get((device, stream))
    if found is None:
        found = _rooms[device, stream] = Room(device, stream)
    return found


def pays(device: torch.device, heads: int, dim: int, rows: int, keys: int) -> bool:
    """Whether the library may leave tokens out of a sequence on this device when it should pay."""
    return room_of(device).context.pays(rows, keys, heads, dim)


def whole_strides(pages: torch.Tensor) -> torch.Tensor:
    """[blocks, block, heads, dim] with a stride for one head, too, that moves by whole rows: with a
    KV head a rank it may be anything."""
    if pages.shape[2] != 1:
        return pages
    strides = (*pages.stride()[:2], pages.shape[3], 1)
    return pages.as_strided(pages.shape, strides, pages.storage_offset())


def add_pattern(
    params: Any, setting: Setting, heads: int, kv_heads: int, owners: list[Any]
) -> None:
    """The setting's block pattern, if it has one; `owners` keep its memory."""
    if setting.blocks:
        options = dict(setting.blocks)
        kind = options.pop("pattern")
        sets = num_sets(options.get("share", "head"), heads, kv_heads)
        params.pattern = pattern_of(kind, sets, options, owners)


class Planned:
    """The call of a run of requests, the same for all sparse layers but for addresses.

    Args:
      query, output: [tokens, heads, dim] of the whole batch.
      pages: K and V as [num_blocks, block_size, kv heads, dim].
      block_table: of the whole batch.

    Raises:
      Unsupported: the backend does not serve such tensors or blocks.
    """

    def __init__(
        self,
        run: Run,
        setting: Setting,
        scale: float,
        query: torch.Tensor,
        pages: Pages,
        block_table: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        self.room = room_of(query.device)
        call = self._call = Call("prefill", self.room.context)
        params = call.params
        lengths = (end - begin for begin, end in zip(run.k_offsets, run.k_offsets[1:]))
        coverage = setting.coverage_of(max(lengths, default=0))
        call.set(coverage=coverage, keep=setting.keep, window=setting.window)
        call.set(pool=setting.pool, min_tokens=setting.min_tokens, scale=scale)
        call.set(sink=setting.sink, band=setting.band)
        params.share = choice("share", setting.share, _library.SHARES)
        params.dropped = choice("dropped", setting.dropped, _library.DROPPED)
        params.when = choice("when", setting.when, _library.WHEN)
        precision = setting.products(str(query.dtype))
        params.precision = choice("precision", precision, _library.PRECISIONS)
        table = block_table[run.first : run.past]
        add_pattern(params, setting, query.shape[1], pages[0].shape[2], call.owners)
        # On a GPU nobody counts the pairs that blocks leave; the kept tokens are told, not added up.
        self.uncounted = bool(setting.blocks) and query.is_cuda
        self.kept: torch.Tensor | None = None
        if self.uncounted:
            self.kept = query.new_empty(run.past - run.first, dtype=torch.int32)
            params.selected.kept = self.kept.data_ptr()
        call.give("q", query[run.rows], "q")
        call.give("k", Paged(whole_strides(pages[0]), table), "k")
        call.give("v", Paged(whole_strides(pages[1]), table), "v")
        call.give("out", output[run.rows], "out", write=True)
        call.batch(run.q_offsets, run.k_offsets, Paged(pages[0], table))
        size = ctypes.c_size_t()
        check(lib.tsp_prefill_workspace(self.room.context.handle, params, size))
        params.workspace, params.workspace_bytes = self.room.at_least(size.value), size.value
        self._workspace = self.room.workspace  # a later plan may ask for a larger one
        self._handle = self.room.context.handle
        self._params = params
        self._q, self._k, self._v, self._out = params.q, params.k, params.v, params.out
        self._q_start = run.rows.start * query.stride(0) * query.element_size()
        self._out_start = run.rows.start * output.stride(0) * output.element_size()
        self.counts = Counts.of(
            (run.q_offsets[i + 1] - run.q_offsets[i], run.k_offsets[i + 1] - run.k_offsets[i])
            for i in range(run.past - run.first)
        )

    def __call__(
        self, query: torch.Tensor, pages: Pages, output: torch.Tensor, tally: int
    ) -> None:
        """Attends in one layer.

        Args:
          tally: address of the layer's two counters; what blocks leave is not added to them.
        """
        self._q.data = query.data_ptr() + self._q_start
        self._k.data, self._v.data = pages[0].data_ptr(), pages[1].data_ptr()
        self._out.data = output.data_ptr() + self._out_start
        self._params.tally = None if self.uncounted else tally
        check(lib.tsp_prefill(self._handle, self._params))


def reserve(
    setting: Setting, scale: float, query: torch.Tensor, kv_heads: int, longest: int
) -> None:
    """Sets workspace aside for a chunk of as many rows as `query` of a prompt of `longest` keys: when
    an engine measures its memory, so that it leaves this. The first room that needs it has it."""
    room = room_of(query.device)
    rows, heads, dim = min(query.shape[0], longest), query.shape[1], query.shape[2]
    q = _library.Tensor(None, _library.DTYPES[str(query.dtype)[6:]], 0, rows, heads, dim)
    q.token_stride, q.head_stride, q.dim_stride = heads * dim, dim, 1
    k = _library.Tensor(None, q.dtype, 16, 0, kv_heads, dim, kv_heads * dim, dim, 1)
    k.block_table, k.table_stride = 16, -(-longest // 16)  # never read: only sizes are asked for
    k.block_stride = 16 * kv_heads * dim
    params = _library.new_params("prefill")
    params.q, params.k, params.v, params.out = q, k, k, q
    offsets = [(ctypes.c_int32 * 2)(0, end) for end in (rows, longest)]
    params.batch = _library.Batch(*offsets, 1, 0)
    params.coverage, params.keep = setting.coverage_of(longest), setting.keep
    params.window = setting.window
    params.pool, params.min_tokens, params.scale = setting.pool, setting.min_tokens, scale
    params.sink, params.band = setting.sink, setting.band
    params.share = choice("share", setting.share, _library.SHARES)
    params.dropped = choice("dropped", setting.dropped, _library.DROPPED)
    owners: list[Any] = []
    add_pattern(params, setting, heads, kv_heads, owners)
    size = ctypes.c_size_t()
    check(lib.tsp_prefill_workspace(room.context.handle, params, size))
    _spare[query.device] = torch.empty(size.value + 64, dtype=torch.uint8, device=query.device)
