# SPDX-License-Identifier: MIT
"""Token Sparse Attention: the last queries of a call vote on the tokens that the others attend to."""

from __future__ import annotations

from typing import Any

from . import Dense, State, Vote


def why_dense(q: Any, k: Any, state: State) -> Dense | None:
    """Where leaving tokens out is not asked for, or the call is too short for it to pay."""
    if not state.named:
        return Dense()
    for q_len, k_len in state.lengths(q, k):
        if k_len < state.setting.min_keys:
            return Dense("fewer keys than min_keys")
        if q_len < state.setting.min_rows:
            return Dense("fewer query rows than min_rows")
    return None


def choose(layer: int, q: Any, k: Any, state: State) -> Dense | Vote:
    """The vote in the layers that the setting names, where the call is long enough for it to pay."""
    if dense := why_dense(q, k, state):
        return dense
    setting = state.setting
    return Vote(
        coverage=setting.coverage_of(max(k_len for _, k_len in state.lengths(q, k))),
        keep=setting.keep or None,
        window=setting.window,
        pool=setting.pool,
        min_tokens=setting.min_tokens,
        share=setting.share,
    )
