# SPDX-License-Identifier: MIT
"""The operations on arrays: numpy, torch, cupy and whatever else speaks DLPack.

Shapes: q `[Tq, Hq, D]`, k and v `[Tk, Hkv, D]` (tokens, heads, head dim), any non-negative strides,
float32, float16 or bfloat16; Hq is a multiple of Hkv and K and V are never repeated. The queries
are the last Tq of the Tk positions: a whole prompt, a chunk of one, and a turn on a cached prefix
are the same call. Nothing is copied, the GIL is released while the library works, and CUDA arrays
are read and written on their current stream without a synchronisation.

A batch is a list of sequences laid end to end: `q_offsets` and `k_offsets` are the
`[num_seqs + 1]` cumulative lengths on the host. k and v may be `Paged`.

Errors: TypeError for a dtype or a kind of argument, InvalidArgument (a ValueError) for everything
else that breaks a rule; each names the argument, the rule and the value.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import _arrays, _context, _library, options
from ._arrays import Paged, View, device_name
from ._context import Context
from ._library import InvalidArgument, check, lib

Array = Any  # numpy.ndarray, torch.Tensor, cupy.ndarray, ...
Share = Literal["head", "kv_group", "layer"]
Dropped = Literal["zero", "local"]
Precision = Literal["f32", "bf16"]


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

    indices: Array
    kept: Array

    def tokens(self, seq: int = 0, set: int = 0) -> Array:
        """Positions that one set of one sequence keeps, ascending, int32 `[kept]`."""
        return self.indices[seq, set, : int(self.kept[seq])]


def _choice(name: str, value: str, allowed: dict[str, int]) -> int:
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


class _Call:
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

    def sets(self, selected: Selection, write: bool = False) -> None:
        indices = self.look(selected.indices, "selected.indices")
        kept = self.look(selected.kept, "selected.kept")
        for name, seen, ndim in (("indices", indices, 3), ("kept", kept, 1)):
            if seen.dtype != "int32":
                raise TypeError(f"selected.{name}: dtype must be int32, is {seen.dtype}")
            if len(seen.shape) != ndim:
                axes = "[num_seqs, S, L]" if ndim == 3 else "[num_seqs]"
                raise InvalidArgument(f"selected.{name}: must be {axes}, is {list(seen.shape)}")
            if seen.shape[0] != self.num_seqs:
                raise InvalidArgument(
                    f"selected.{name}: must have one entry for each of {self.num_seqs} sequences, "
                    f"has {seen.shape[0]}"
                )
            if seen.shape[-1] > 1 and seen.strides[-1] != 1 or min(seen.strides) < 0:
                raise InvalidArgument(
                    f"selected.{name}: the last axis must be contiguous, strides are "
                    f"{list(seen.strides)}"
                )
        self.params.selected = _library.IndexSets(
            indices.data, kept.data, indices.shape[1], 0, indices.strides[1], indices.strides[0]
        )

    def run(self) -> None:
        if self.context is not None:
            self._check_context(self.context)
            self._run(self.context)
            return
        backend, ordinal = self.device or ("cpu", 0)
        threads = 0
        if backend == "cpu":
            backend = options.default_backend()
            threads = options.default_threads(self.like)
        with _context.lease(backend, ordinal, threads) as context:
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


def _current_stream(like: Any, producer: int | None) -> int:
    if producer is not None:
        return producer
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return torch.cuda.current_stream(like.device).cuda_stream
    return 0


def _lengths(q_len: int, k_len: int, q_offsets: Any, k_offsets: Any) -> list[tuple[int, int]]:
    if q_offsets is None:
        return [(q_len, k_len)]
    q, k = list(map(int, q_offsets)), list(map(int, k_offsets))
    return [(q[i + 1] - q[i], k[i + 1] - k[i]) for i in range(len(q) - 1)]


def _prefix_len(lengths: list[tuple[int, int]], window: int) -> int:
    return sum(max(0, tk - min(window, tq)) for tq, tk in lengths)


def _num_sets(share: str, q_heads: int, kv_heads: int) -> int:
    return {"head": q_heads, "kv_group": kv_heads, "layer": 1}[share]


def _k_heads(k: Any) -> int:
    shape = (k.data if isinstance(k, Paged) else k).shape
    return int(shape[-2])


def _empty_sets(call: _Call, share: str, q_heads: int, kv_heads: int, longest: int) -> Selection:
    shape = (call.num_seqs, _num_sets(share, q_heads, kv_heads), max(longest, 1))
    return Selection(
        _arrays.empty_like(call.like, shape, "int32", "q"),
        _arrays.empty_like(call.like, (call.num_seqs,), "int32", "q"),
    )


def score(
    q: Array,
    k: Array | Paged,
    *,
    window: int = 128,
    pool: int = 7,
    scale: float | None = None,
    q_offsets: Sequence[int] | None = None,
    k_offsets: Sequence[int] | None = None,
    out: Array | None = None,
    context: Context | None = None,
) -> Array:
    """How much the last `window` queries look at each earlier token.

    Args:
      q: `[Tq, Hq, D]`.
      k: `[Tk, Hkv, D]` or Paged.
      window: last queries that vote, >= 1.
      pool: width of the average pooling, odd.
      scale: of q k; None = 1 / sqrt(D).
      q_offsets, k_offsets: `[num_seqs + 1]` cumulative lengths of a batch.
      out: float32 `[P, Hq]` to write into.
      context: where to run; None = the device of q.

    Returns:
      float32 `[P, Hq]` with P = Tk - min(window, Tq) of all sequences together: the mean over the
      window of each head's softmax, average-pooled over the tokens.
    """
    call = _Call("score", context)
    params = call.params
    seen = call.give("q", q, "q")
    k_seen = call.give("k", k, "k")
    call.batch(q_offsets, k_offsets, k)
    params.window, params.pool, params.scale = window, pool, scale or 0.0
    k_len = k_seen.shape[0] if k_seen else 0
    rows = _prefix_len(_lengths(seen.shape[0], k_len, q_offsets, k_offsets), max(window, 1))
    if out is None:
        out = _arrays.empty_like(call.like, (rows, seen.shape[1]), "float32", "q")
    call.give("scores", out, "out", axes="[P, heads]", allowed=("float32",), write=True)
    call.run()
    return out


def select(
    scores: Array,
    q_len: int,
    k_len: int,
    *,
    num_kv_heads: int | None = None,
    coverage: float = 0.005,
    keep: float | None = None,
    window: int = 128,
    min_tokens: int = 1024,
    share: Share = "head",
    q_offsets: Sequence[int] | None = None,
    k_offsets: Sequence[int] | None = None,
    context: Context | None = None,
) -> Selection:
    """How many tokens to keep, and which ones each set keeps.

    Args:
      scores: float32 `[P, Hq]` as `score` returned them.
      q_len, k_len: Tq and Tk (ignored with offsets).
      num_kv_heads: Hkv; None = Hq. Only `share="kv_group"` needs it.
      coverage: share of the prefix attention mass that may be dropped, [0, 1).
      keep: a fixed share of the tokens to keep instead, (0, 1].
      window: as given to `score`; the last `window` tokens are always kept.
      min_tokens: prefix tokens that are always kept.
      share: who owns a set: each query head, each KV group, or the layer.

    Returns:
      Selection with int32 indices `[num_seqs, S, L]` and kept `[num_seqs]`.
    """
    call = _Call("select", context)
    params = call.params
    code = _choice("share", share, _library.SHARES)
    seen = call.give("scores", scores, "scores", axes="[P, heads]", allowed=("float32",))
    call.batch(q_offsets, k_offsets, None)
    heads = seen.shape[1]
    params.window, params.min_tokens, params.share = window, min_tokens, code
    params.coverage, params.keep = coverage, keep or 0.0
    params.num_kv_heads = num_kv_heads or heads
    params.q_len, params.k_len = q_len, k_len
    longest = max(tk for _, tk in _lengths(q_len, k_len, q_offsets, k_offsets))
    selected = _empty_sets(call, share, heads, params.num_kv_heads, longest)
    call.sets(selected, write=True)
    call.run()
    return selected


def compress(
    q: Array | None,
    k: Array | Paged,
    v: Array | Paged,
    selected: Selection,
    *,
    q_offsets: Sequence[int] | None = None,
    k_offsets: Sequence[int] | None = None,
    max_kept: int | None = None,
    context: Context | None = None,
) -> tuple[Array | None, Array, Array]:
    """The kept rows side by side, for an attention kernel that knows nothing of sets.

    Args:
      q: `[Tq, Hq, D]`, or None to skip it.
      k, v: `[Tk, Hkv, D]` or Paged.
      selected: from `select`.
      max_kept: rows C of each output per sequence; None = the largest kept count, which for CUDA
        arrays waits for the GPU.

    Returns:
      (q, k, v) of shapes `[num_seqs * C, Hq, D]` and twice `[num_seqs * C, max(S, Hkv), D]`; plain
      causal attention on them is exact. Rows from kept[b] on are undefined.
    """
    call = _Call("compress", context)
    like = k.data if isinstance(k, Paged) else k
    if q is not None:
        call.give("q", q, "q")
    call.give("k", k, "k")
    call.give("v", v, "v")
    call.batch(q_offsets, k_offsets, k)
    call.sets(selected)
    if max_kept is None:
        max_kept = int(max(selected.kept))
    rows, heads = call.num_seqs * max_kept, max(selected.indices.shape[1], _k_heads(k))
    if q is None:  # no data, but the shape that the sets and the batch are held against
        kv = call.params.k
        q_rows = int(q_offsets[-1]) if q_offsets is not None else kv.tokens
        shape = (q_rows, heads, kv.dim)
        strides = _arrays.contiguous_strides(shape)
        call.params.q = _library.Tensor(None, kv.dtype, 0, *shape, *strides, None, 0, 0)
    outputs: list[Any] = [None]
    for field, x, count in (("q", q, None), ("k", k, heads), ("v", v, heads)):
        if x is None:
            continue
        source = x.data if isinstance(x, Paged) else x
        shape = (rows, count or source.shape[1], source.shape[-1])
        made = _arrays.empty_like(source, shape, _arrays.view(source, field).dtype, field)
        call.give(f"{field}_out", made, f"{field}_out", write=True)
        outputs.append(made)
    call.like = like
    call.run()
    return tuple(outputs[-3:]) if q is not None else (None, *outputs[-2:])


def decompress(
    x: Array,
    selected: Selection,
    q_len: int | None = None,
    k_len: int | None = None,
    *,
    q_offsets: Sequence[int] | None = None,
    k_offsets: Sequence[int] | None = None,
    out: Array | None = None,
    context: Context | None = None,
) -> Array:
    """Attention output on kept rows back to full length: the inverse of `compress`.

    Args:
      x: `[num_seqs * C, Hq, D]`.
      selected: the same as given to `compress`.
      q_len, k_len: Tq and Tk of one sequence (instead of offsets).
      out: `[Tq, Hq, D]`, dtype of x, to write into.

    Returns:
      `[Tq, Hq, D]`: the kept rows at their positions, zeros elsewhere.
    """
    call = _Call("decompress", context)
    seen = call.give("in_", x, "x")
    call.batch(q_offsets, k_offsets, None)
    if q_offsets is None:
        if q_len is None or k_len is None:
            raise InvalidArgument("q_len, k_len: must be given when there are no offsets")
        call.params.k_len = k_len
    rows = int(q_offsets[-1]) if q_offsets is not None else q_len
    if out is None:
        out = _arrays.empty_like(x, (rows, *seen.shape[1:]), seen.dtype, "x")
    call.give("out", out, "out", write=True)
    call.sets(selected)
    call.run()
    return out


def attend(
    q: Array,
    k: Array | Paged,
    v: Array | Paged,
    selected: Selection | None = None,
    *,
    scale: float | None = None,
    dropped: Dropped = "zero",
    band: int = 256,
    precision: Precision = "f32",
    return_lse: bool = False,
    q_offsets: Sequence[int] | None = None,
    k_offsets: Sequence[int] | None = None,
    out: Array | None = None,
    context: Context | None = None,
) -> Any:
    """Causal attention, dense or on the kept tokens of each set.

    Args:
      q: `[Tq, Hq, D]`.
      k, v: `[Tk, Hkv, D]` or Paged.
      selected: from `select`; None = dense.
      scale: of q k; None = 1 / sqrt(D).
      dropped: what a query row that its set left out gets: zeros, or attention over its last
        `band` keys ("local").
      precision: "f32", or "bf16" for products of operands rounded to bfloat16.
      return_lse: also return the log-sum-exp, float32 `[Tq, Hq]`, -inf for a row of zeros.
      out: `[Tq, Hq, D]` to write into; None = a new array of q's kind and dtype.

    Returns:
      out, or (out, lse).
    """
    call = _Call("attend", context)
    params = call.params
    params.dropped = _choice("dropped", dropped, _library.DROPPED)
    params.precision = _choice("precision", precision, _library.PRECISIONS)
    params.band, params.scale = band, scale or 0.0
    seen = call.give("q", q, "q")
    call.give("k", k, "k")
    call.give("v", v, "v")
    call.batch(q_offsets, k_offsets, k)
    if selected is not None:
        call.sets(selected)
    out = _output(call, q, seen, out)
    lse = _lse(call, q, seen) if return_lse else None
    call.run()
    return (out, lse) if return_lse else out


def _output(call: _Call, q: Array, seen: View, out: Array | None) -> Array:
    if out is None:
        out = _arrays.empty_like(q, seen.shape, seen.dtype, "q")
    call.give("out", out, "out", write=True)
    return out


def _lse(call: _Call, q: Array, seen: View) -> Array:
    lse = _arrays.empty_like(q, seen.shape[:2], "float32", "q")
    call.give("lse", lse, "lse", axes="[tokens, heads]", allowed=("float32",), write=True)
    return lse


def prefill(
    q: Array,
    k: Array | Paged,
    v: Array | Paged,
    *,
    coverage: float = 0.005,
    keep: float | None = None,
    window: int = 128,
    pool: int = 7,
    min_tokens: int = 1024,
    share: Share = "head",
    dropped: Dropped = "zero",
    band: int = 256,
    precision: Precision = "f32",
    scale: float | None = None,
    return_lse: bool = False,
    return_selection: bool = False,
    return_kept: bool = False,
    q_offsets: Sequence[int] | None = None,
    k_offsets: Sequence[int] | None = None,
    out: Array | None = None,
    context: Context | None = None,
) -> Any:
    """Token sparse attention in one call: `attend(q, k, v, select(score(q, k)))`.

    Args:
      q: `[Tq, Hq, D]`.
      k, v: `[Tk, Hkv, D]` or Paged.
      coverage: share of the prefix attention mass that may be dropped, [0, 1); 0 = exact
        attention, equal to `attend(q, k, v)` bit for bit.
      keep: a fixed share of the tokens to keep instead, (0, 1].
      window, pool: see `score`.
      min_tokens, share: see `select`.
      dropped, band, precision, scale, out: see `attend`.
      return_lse: also return the log-sum-exp, float32 `[Tq, Hq]`.
      return_selection: also return the Selection.
      return_kept: also return only its kept counts, int32 `[num_seqs]`.

    Returns:
      out `[Tq, Hq, D]` of q's kind and dtype; with any `return_*` a tuple of out and what was
      asked for, in the order lse, selection, kept.
    """
    call = _Call("prefill", context)
    params = call.params
    params.share = _choice("share", share, _library.SHARES)
    params.dropped = _choice("dropped", dropped, _library.DROPPED)
    params.precision = _choice("precision", precision, _library.PRECISIONS)
    params.coverage, params.keep, params.window, params.pool = coverage, keep or 0.0, window, pool
    params.min_tokens, params.band, params.scale = min_tokens, band, scale or 0.0
    seen = call.give("q", q, "q")
    k_seen = call.give("k", k, "k")
    call.give("v", v, "v")
    call.batch(q_offsets, k_offsets, k)
    out = _output(call, q, seen, out)
    results = [out]
    if return_lse:
        results.append(_lse(call, q, seen))
    if return_selection:
        k_len = k_seen.shape[0] if k_seen else 0
        longest = max(tk for _, tk in _lengths(seen.shape[0], k_len, q_offsets, k_offsets))
        selected = _empty_sets(call, share, seen.shape[1], _k_heads(k), longest)
        call.sets(selected, write=True)
        results.append(selected)
        if return_kept:
            results.append(selected.kept)
    elif return_kept:
        kept = _arrays.empty_like(q, (call.num_seqs,), "int32", "q")
        params.selected.kept = _arrays.view(kept, "kept").data
        results.append(kept)
    call.run()
    return results[0] if len(results) == 1 else tuple(results)
