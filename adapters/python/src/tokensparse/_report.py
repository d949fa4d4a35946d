# SPDX-License-Identifier: MIT
"""What an adapter did in each layer: what was kept, who served the calls, and why not us."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LayerReport:
    """One layer since the last reset.

    Attributes:
      layer: index in the model.
      sparse: whether the options let this layer drop tokens.
      served: calls by tokensparse (one a sequence).
      stock: calls handed to the engine's own kernel, by reason.
      query_tokens: rows of the served calls.
      too_short: served calls of a sparse layer that were attended exactly: nothing to gain.
    """

    layer: int
    sparse: bool = False
    served: int = 0
    stock: Counter[str] = field(default_factory=Counter)
    query_tokens: int = 0
    too_short: int = 0
    _key_tokens: int = 0
    _kept: Any = 0

    def count(self, q_len: int, k_len: int, kept: Any, sparse: bool) -> None:
        # A device tensor is added up where it lives: reading it would wait for the GPU.
        self.served += 1
        self.query_tokens += q_len
        self._key_tokens += k_len
        self._kept = self._kept + kept
        self.sparse = sparse

    def clear(self) -> None:
        """Forgets the calls."""
        self.served, self.query_tokens, self._key_tokens, self._kept = 0, 0, 0, 0
        self.too_short = 0
        self.stock.clear()

    @property
    def kept_share(self) -> float | None:
        """Kept tokens over tokens of the served calls; None when there were none."""
        return float(self._kept) / self._key_tokens if self._key_tokens else None

    def __str__(self) -> str:
        text = f"layer {self.layer:3d}  {'sparse' if self.sparse else 'exact ':6s}"
        if self.served:
            text += f"  served {self.served} calls, {self.query_tokens} query tokens"
            text += f", kept {self.kept_share:.1%}"
        if self.too_short:
            text += f"; exact {self.too_short} calls (too short to gain, min_keys)"
        for reason, calls in self.stock.items():
            text += f"; stock {calls} calls ({reason})"
        return text


class Report(list):
    """LayerReports in layer order; prints as a table."""

    @property
    def kept_share(self) -> float | None:
        """Over the sparse layers together; None when none served a call."""
        layers = [r for r in self if r.sparse and r._key_tokens]
        keys = sum(r._key_tokens for r in layers)
        return sum(float(r._kept) for r in layers) / keys if keys else None

    def asdict(self) -> list[dict[str, Any]]:
        """JSON-able."""
        return [
            {
                "layer": r.layer,
                "sparse": r.sparse,
                "served": r.served,
                "query_tokens": r.query_tokens,
                "kept_share": r.kept_share,
                "too_short": r.too_short,
                "stock": dict(r.stock),
            }
            for r in self
        ]

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no attention call yet"
