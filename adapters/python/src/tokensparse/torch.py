# SPDX-License-Identifier: MIT
"""The operations as torch operators: `torch.ops.tokensparse.prefill` and friends.

    import tokensparse.torch
    out = torch.ops.tokensparse.prefill(q, k, v, coverage=0.005)

They have fake implementations, so torch.compile and torch.export see their shapes without running
them. Inference only: there is no backward. `q`, `k`, `v` as in `tokensparse.prefill`.
"""

from __future__ import annotations

from . import ops
from ._call import num_sets
from ._need import need

torch = need("torch", "2.6", "tokensparse.torch")

Tensor = torch.Tensor


def _prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    coverage: float = 0.005,
    keep: float = 0.0,
    window: int = 128,
    pool: int = 7,
    min_tokens: int = 1024,
    share: str = "head",
    dropped: str = "zero",
    band: int = 256,
    precision: str = "f32",
    scale: float = 0.0,
) -> Tensor:
    return ops.prefill(
        q,
        k,
        v,
        coverage=coverage,
        keep=keep,
        window=window,
        pool=pool,
        min_tokens=min_tokens,
        share=share,
        dropped=dropped,
        band=band,
        precision=precision,
        scale=scale,
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, precision: str = "f32", scale: float = 0.0
) -> tuple[Tensor, Tensor]:
    return ops.attend(q, k, v, precision=precision, scale=scale, return_lse=True)


def _attend_sets(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    kept: Tensor,
    dropped: str = "zero",
    band: int = 256,
    precision: str = "f32",
    scale: float = 0.0,
) -> tuple[Tensor, Tensor]:
    return ops.attend(
        q,
        k,
        v,
        ops.Selection(indices, kept),
        dropped=dropped,
        band=band,
        precision=precision,
        scale=scale,
        return_lse=True,
    )


def _score(q: Tensor, k: Tensor, window: int = 128, pool: int = 7, scale: float = 0.0) -> Tensor:
    return ops.score(q, k, window=window, pool=pool, scale=scale)


def _select(
    scores: Tensor,
    q_len: int,
    k_len: int,
    num_kv_heads: int,
    coverage: float = 0.005,
    keep: float = 0.0,
    window: int = 128,
    min_tokens: int = 1024,
    share: str = "head",
) -> tuple[Tensor, Tensor]:
    selected = ops.select(
        scores,
        q_len,
        k_len,
        num_kv_heads=num_kv_heads,
        coverage=coverage,
        keep=keep,
        window=window,
        min_tokens=min_tokens,
        share=share,
    )
    # An operator's result must be a function of its arguments: nothing undefined behind the sets.
    entries = torch.arange(selected.indices.shape[-1], device=scores.device)
    return selected.indices.where(entries < selected.kept[:, None, None], -1), selected.kept


def _fake_out(q, k, v, *args, **kwargs):
    return q.new_empty(q.shape)


def _fake_out_lse(q, k, v, *args, **kwargs):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


def _fake_score(q, k, window=128, pool=7, scale=0.0):
    rows = k.shape[0] - torch.sym_min(window, q.shape[0])
    return q.new_empty((torch.sym_max(rows, 0), q.shape[1]), dtype=torch.float32)


def _fake_select(scores, q_len, k_len, num_kv_heads, *args, share="head", **kwargs):
    if len(args) > 4:
        share = args[4]
    sets = num_sets(share, scores.shape[1], num_kv_heads)
    indices = scores.new_empty((1, sets, torch.sym_max(k_len, 1)), dtype=torch.int32)
    return indices, scores.new_empty((1,), dtype=torch.int32)


def _register(name, function, fake):
    op = torch.library.custom_op(f"tokensparse::{name}", function, mutates_args=())
    op.register_fake(fake)
    return op


prefill = _register("prefill", _prefill, _fake_out)
attend = _register("attend", _attend, _fake_out_lse)
attend_sets = _register("attend_sets", _attend_sets, _fake_out_lse)
score = _register("score", _score, _fake_score)
select = _register("select", _select, _fake_select)
