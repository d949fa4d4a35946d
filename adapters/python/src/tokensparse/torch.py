# SPDX-License-Identifier: MIT
"""The operations as torch operators: `torch.ops.tokensparse.prefill` and friends.

    import tokensparse.torch
    out = torch.ops.tokensparse.prefill(q, k, v, coverage=0.005)

They are registered over torch's stable ABI and have fake implementations, so torch.compile and
torch.export see their shapes without running them. Inference only: there is no backward. Arguments
are those of the functions in `tokensparse`, with 0.0 for `keep` and `scale` that are not given:

    prefill(q, k, v, ..., blocks="none") -> out; blocks is text: "xattention,threshold=0.8"
    attend(q, k, v, precision, scale) -> (out, lse)
    attend_sets(q, k, v, indices, kept, dropped, sink, band, precision, scale) -> (out, lse)
    score(q, k, window, pool, scale, precision) -> scores
    select(scores, q_len, k_len, num_kv_heads, ...) -> (indices [1, S, L], kept [1])

What breaks a rule is a RuntimeError that names the argument, the rule and the value.
"""

from __future__ import annotations

from . import _torch_library
from ._call import num_sets
from ._need import need

torch = need("torch", _torch_library.AT_LEAST, "tokensparse.torch")
_torch_library.load()


def _fake_out(q, k, v, *args, **kwargs):
    return q.new_empty(q.shape)


def _fake_out_lse(q, k, v, *args, **kwargs):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


def _fake_score(q, k, window=128, *args, **kwargs):
    rows = k.shape[0] - torch.sym_min(window, q.shape[0])
    return q.new_empty((torch.sym_max(rows, 0), q.shape[1]), dtype=torch.float32)


def _fake_select(scores, q_len, k_len, num_kv_heads, *args, share="head", **kwargs):
    if len(args) > 4:
        share = args[4]
    sets = num_sets(share, scores.shape[1], num_kv_heads)
    indices = scores.new_empty((1, sets, torch.sym_max(k_len, 1)), dtype=torch.int32)
    return indices, scores.new_empty((1,), dtype=torch.int32)


def _no_backward(context, *gradients):
    raise RuntimeError(
        "tokensparse is inference only, it has no backward: call under torch.no_grad()"
    )


def _operator(name, fake):
    torch.library.register_fake(f"tokensparse::{name}", fake)
    torch.library.register_autograd(f"tokensparse::{name}", _no_backward)
    return getattr(torch.ops.tokensparse, name).default


prefill = _operator("prefill", _fake_out)
attend = _operator("attend", _fake_out_lse)
attend_sets = _operator("attend_sets", _fake_out_lse)
score = _operator("score", _fake_score)
select = _operator("select", _fake_select)
