# SPDX-License-Identifier: MIT
"""What the tests share: random tensors and the operator restated with numpy."""

import numpy as np
import pytest


def dense(q, k, v):
    """Bottom-right causal attention in float64, with its log-sum-exp."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    q_len, q_heads, dim = q.shape
    k_len, kv_heads, _ = k.shape
    group = q_heads // kv_heads
    visible = np.arange(k_len)[None] <= np.arange(q_len)[:, None] + k_len - q_len
    out, lse = np.empty(q.shape), np.empty(q.shape[:2])
    for head in range(q_heads):
        logits = q[:, head] @ k[:, head // group].T / np.sqrt(dim)
        logits = np.where(visible, logits, -np.inf)
        top = logits.max(-1, keepdims=True)
        weights = np.exp(logits - top)
        total = weights.sum(-1, keepdims=True)
        out[:, head] = weights / total @ v[:, head // group]
        lse[:, head] = (top + np.log(total))[:, 0]
    return out, lse


@pytest.fixture
def qkv():
    """Makes q [Tq, Hq, D], k and v [Tk, Hkv, D] from a fixed seed."""

    def make(q_len=96, k_len=96, q_heads=4, kv_heads=2, dim=64, dtype=np.float32, seed=7):
        random = np.random.default_rng(seed)
        q = random.standard_normal((q_len, q_heads, dim), np.float32)
        k = random.standard_normal((k_len, kv_heads, dim), np.float32)
        v = random.standard_normal((k_len, kv_heads, dim), np.float32)
        return tuple(x.astype(dtype) for x in (q, k, v))

    return make
