# SPDX-License-Identifier: MIT
"""How many query-key pairs attention computes: what sparsity saves, without a clock."""

from __future__ import annotations

from typing import Any

from ._call import Selection


def clipped_sum(first: int, last: int, most: int) -> int:
    """The sum over the positions p in [first, last) of min(p + 1, most)."""

    def sum_to(end: int) -> int:
        rising = min(end, most)
        return rising * (rising + 1) // 2 + (end - rising) * most

    return sum_to(last) - sum_to(first)


def dense_pairs(rows: int, keys: int) -> int:
    """Of dense causal attention by the last `rows` of `keys` positions."""
    return clipped_sum(keys - rows, keys, keys)


def computed_pairs(selected: Selection, sequences: list[tuple[int, int]], near: int) -> Any:
    """Pairs that attention on the sets computes, the mean over the sets, all sequences together.

    Kept queries see the kept keys before them, the others `near` keys.

    Args:
      selected: torch tensors; those of a GPU are not waited for.
      sequences: query rows and keys of each.
      near: sink and band where left-out queries see them, else 0.

    Returns:
      A number, or a tensor of one on the GPU.
    """
    total: Any = 0
    for sequence, (rows, keys) in enumerate(sequences):
        indices, kept = selected.indices[sequence, :, :keys], selected.kept[sequence]
        order = indices.new_ones(indices.shape[-1]).cumsum(0)  # 1, 2, ...: keys that a query sees
        counts = (order <= kept) & (indices >= keys - rows)
        gained = (order - (indices + 1).clamp(max=near)) * counts
        pairs = clipped_sum(keys - rows, keys, near) + gained.sum() / indices.shape[0]
        total = total + pairs.where(kept < keys, dense_pairs(rows, keys) + 0 * pairs)
    return float(total) if total.device.type == "cpu" else total
