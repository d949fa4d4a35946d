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
from collections.abc import Sequence
from typing import Any, Literal

from . import _arrays, _blocks, _library
from ._arrays import Paged, View
from ._call import Call, Selection, choice, empty_sets, k_heads, lengths, num_sets, prefix_len
from ._context import Context
from ._library import InvalidArgument

Array = Any  # numpy.ndarray, torch.Tensor, cupy.ndarray, ...
Share = Literal["head", "kv_group", "layer"]
Dropped = Literal["zero", "local"]
When = Literal["always", "pays"]
Precision = Literal["f32", "bf16"]


def score(
    q: Array,
    k: Array | Paged,
    *,
    window: int = 128,
    pool: int = 7,
    scale: float | None = None,
    precision: Precision = "f32",
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
      scale: of q k; None or 0 = 1 / sqrt(D).
      precision: "f32", or "bf16" for products of operands rounded to bfloat16.
      q_offsets, k_offsets: `[num_seqs + 1]` cumulative lengths of a batch.
      out: float32 `[P, Hq]` to write into.
      context: where to run; None = the device of q.

    Returns:
      float32 `[P, Hq]` with P = Tk - min(window, Tq) of all sequences together: the mean over the
      window of each head's softmax, average-pooled over the tokens.
    """
    call = Call("score", context)
    seen = call.give("q", q, "q")
    k_seen = call.give("k", k, "k")
    call.batch(q_offsets, k_offsets, k)
    call.set(window=window, pool=pool, scale=scale or 0.0)
    call.params.precision = choice("precision", precision, _library.PRECISIONS)
    k_len = k_seen.shape[0] if k_seen else 0
    rows = prefix_len(lengths(seen.shape[0], k_len, q_offsets, k_offsets), max(window, 1))
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
    call = Call("select", context)
    code = choice("share", share, _library.SHARES)
    seen = call.give("scores", scores, "scores", axes="[P, heads]", allowed=("float32",))
    call.batch(q_offsets, k_offsets, None)
    heads = seen.shape[1]
    call.set(window=window, min_tokens=min_tokens, share=code, coverage=coverage, keep=keep or 0.0)
    call.set(num_kv_heads=num_kv_heads or heads, q_len=q_len, k_len=k_len)
    longest = max(tk for _, tk in lengths(q_len, k_len, q_offsets, k_offsets))
    selected = empty_sets(call, share, heads, call.params.num_kv_heads, longest)
    call.sets(selected)
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
    call = Call("compress", context)
    like = k.data if isinstance(k, Paged) else k
    if q is not None:
        call.give("q", q, "q")
    call.give("k", k, "k")
    call.give("v", v, "v")
    call.batch(q_offsets, k_offsets, k)
    call.sets(selected)
    if max_kept is None:
        max_kept = int(max(selected.kept))
    rows, heads = call.num_seqs * max_kept, max(selected.indices.shape[1], k_heads(k))
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
    call = Call("decompress", context)
    seen = call.give("in_", x, "x")
    call.batch(q_offsets, k_offsets, None)
    if q_offsets is None:
        if q_len is None or k_len is None:
            raise InvalidArgument("q_len, k_len: must be given when there are no offsets")
        call.set(k_len=k_len)
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
    sink: int = 0,
    band: int = 256,
    precision: Precision = "f32",
    return_lse: bool = False,
    q_offsets: Sequence[int] | None = None,
    k_offsets: Sequence[int] | None = None,
    out: Array | None = None,
    blocks: Any | None = None,
    context: Context | None = None,
) -> Any:
    """Causal attention, dense or on the kept tokens of each set.

    Args:
      q: `[Tq, Hq, D]`.
      k, v: `[Tk, Hkv, D]` or Paged.
      selected: from `select`; None = dense.
      scale: of q k; None or 0 = 1 / sqrt(D).
      dropped, sink, band: what a query row that its set left out gets: zeros, or attention over the
        first `sink` and its last `band` keys ("local").
      precision: "f32", or "bf16" for products of operands rounded to bfloat16.
      return_lse: also return the log-sum-exp, float32 `[Tq, Hq]`, -inf for a row of zeros.
      out: `[Tq, Hq, D]` to write into; None = a new array of q's kind and dtype.
      blocks: which key blocks and columns each block of queries reads, of the entries of
        `selected` or of positions; None = every key. An object with the attributes of
        tsp_block_sets_t, int32 arrays where the queries live: blocks `[num_seqs, S, M, L]`, the
        ascending key blocks of query block m in the first counts[b, s, m]; counts
        `[num_seqs, S, M]`; columns `[num_seqs, S, C]` and num_columns `[num_seqs, S]`, or None
        both; and block, the entries of a block. S = Hq, Hkv or 1.

    Returns:
      out, or (out, lse).
    """
    call = Call("attend", context)
    params = call.params
    params.dropped = choice("dropped", dropped, _library.DROPPED)
    params.precision = choice("precision", precision, _library.PRECISIONS)
    call.set(sink=sink, band=band, scale=scale or 0.0)
    seen = call.give("q", q, "q")
    call.give("k", k, "k")
    call.give("v", v, "v")
    call.batch(q_offsets, k_offsets, k)
    if selected is not None:
        call.sets(selected)
    if blocks is not None:
        call.blocks(blocks)
    out = _output(call, q, seen, out)
    lse = _lse(call, q, seen) if return_lse else None
    call.run()
    return (out, lse) if return_lse else out


def _output(call: Call, q: Array, seen: View, out: Array | None) -> Array:
    if out is None:
        out = _arrays.empty_like(q, seen.shape, seen.dtype, "q")
    call.give("out", out, "out", write=True)
    return out


def _lse(call: Call, q: Array, seen: View) -> Array:
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
    sink: int = 0,
    band: int = 256,
    precision: Precision = "f32",
    scale: float | None = None,
    sets: Selection | None = None,
    when: When = "always",
    return_lse: bool = False,
    return_selection: bool = False,
    return_kept: bool = False,
    return_pairs: bool = False,
    q_offsets: Sequence[int] | None = None,
    k_offsets: Sequence[int] | None = None,
    out: Array | None = None,
    blocks: Any | None = None,
    pattern: str | None = None,
    pattern_options: dict[str, Any] | None = None,
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
      dropped, sink, band, precision, scale, out: see `attend`.
      sets: the Selection to attend to; None = choose. With it coverage, keep, window, pool,
        min_tokens and share are not used.
      when: "pays" attends exactly in sequences where leaving tokens out is not expected to be
        faster; "always" does what is asked.
      blocks: see `attend`; with `sets`, or with coverage = 0.
      pattern, pattern_options: attend by the blocks that `estimate` finds among the kept tokens with
        this pattern and these parameters of it. Its sets, `share`, must be a multiple of those of
        the kept tokens. Not on CUDA.
      return_lse: also return the log-sum-exp, float32 `[Tq, Hq]`.
      return_selection: also return the Selection.
      return_kept: also return only its kept counts, int32 `[num_seqs]`.
      return_pairs: also return how many query-key pairs attention computed, all sequences together,
        the mean over the heads. On the host.

    Returns:
      out `[Tq, Hq, D]` of q's kind and dtype; with any `return_*` a tuple of out and what was
      asked for, in the order lse, selection, kept, pairs.
    """
    call = Call("prefill", context)
    params = call.params
    params.share = choice("share", share, _library.SHARES)
    params.dropped = choice("dropped", dropped, _library.DROPPED)
    params.precision = choice("precision", precision, _library.PRECISIONS)
    call.set(coverage=coverage, keep=keep or 0.0, window=window, pool=pool, scale=scale or 0.0)
    call.set(min_tokens=min_tokens, sink=sink, band=band)
    params.when = choice("when", when, _library.WHEN)
    seen = call.give("q", q, "q")
    k_seen = call.give("k", k, "k")
    call.give("v", v, "v")
    call.batch(q_offsets, k_offsets, k)
    if sets is not None:
        call.sets(sets, "given", "sets")
    if blocks is not None:
        call.blocks(blocks)
    if pattern is not None:
        options = pattern_options or {}
        lists = options.get("share", "head")
        choice("share", lists, _library.SHARES)
        count = num_sets(lists, seen.shape[1], k_heads(k))
        params.pattern = _blocks.pattern_of(pattern, count, options, call.owners)
    elif pattern_options is not None:
        raise InvalidArgument("pattern_options: must be None without a pattern")
    out = _output(call, q, seen, out)
    results = [out]
    if return_lse:
        results.append(_lse(call, q, seen))
    if return_selection:
        k_len = k_seen.shape[0] if k_seen else 0
        longest = max(tk for _, tk in lengths(seen.shape[0], k_len, q_offsets, k_offsets))
        selected = empty_sets(call, share, seen.shape[1], k_heads(k), longest)
        if sets is not None:
            shape = (call.num_seqs, sets.indices.shape[1], max(longest, 1))
            selected = Selection(_arrays.empty_like(q, shape, "int32", "q"), selected.kept)
        call.sets(selected)
        results.append(selected)
        if return_kept:
            results.append(selected.kept)
    elif return_kept:
        kept = _arrays.empty_like(q, (call.num_seqs,), "int32", "q")
        params.selected.kept = _arrays.view(kept, "kept").data
        results.append(kept)
    tally = (ctypes.c_int64 * 2)()
    if return_pairs:
        params.tally = ctypes.addressof(tally)
    call.run()
    if return_pairs:
        results.append(tally[1] / seen.shape[1])
    return results[0] if len(results) == 1 else tuple(results)
