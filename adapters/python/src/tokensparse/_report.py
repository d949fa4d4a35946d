# SPDX-License-Identifier: MIT
"""What an adapter did in each layer: what was kept, who served the calls, and why not us."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ._call import Selection
from ._pairs import computed_pairs, dense_pairs

# Why an engine's own kernel attended to prompts in our place.
EXACT = "exact layer"
TOO_SHORT = "too short for sparse layers to gain"
SMALL = "too short for a call of ours to gain"


@dataclass(frozen=True)
class Counts:
    """Of calls whose kept tokens are counted elsewhere, what is known of them all the same."""

    calls: int
    rows: int
    keys: int
    pairs: int  # of dense attention

    @classmethod
    def of(cls, sequences: Iterable[tuple[int, int]]) -> Counts:
        """Of calls of `sequences`: query rows and keys of each."""
        calls = all_rows = all_keys = pairs = 0
        for rows, keys in sequences:
            calls, all_rows, all_keys = calls + 1, all_rows + rows, all_keys + keys
            pairs += dense_pairs(rows, keys)
        return cls(calls, all_rows, all_keys, pairs)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.calls + other.calls,
            self.rows + other.rows,
            self.keys + other.keys,
            self.pairs + other.pairs,
        )


@dataclass
class LayerReport:
    """One layer since the last configure or reset.

    Attributes:
      layer: index in the model.
      named: whether the setting names this layer as one that may leave tokens out.
      served: sequences of calls that tokensparse served.
      sparse_calls: of these, the ones that were sparse.
      exact: of these, the ones of a layer that the setting names which were exact, by reason.
      stock: calls handed to the engine's own kernel, by reason.
      query_tokens: rows of the served calls.
      uncounted: whether calls by blocks were not counted, as on a GPU: there are no pairs then.
    """

    layer: int
    named: bool = False
    served: int = 0
    sparse_calls: int = 0
    exact: Counter[str] = field(default_factory=Counter)
    stock: Counter[str] = field(default_factory=Counter)
    query_tokens: int = 0
    uncounted: bool = False
    _key_tokens: int = 0
    _dense_pairs: int = 0
    _kept: Any = 0
    _pairs: Any = 0

    def _count(self, counts: Counts, kept: Any, pairs: Any) -> None:
        self.served += counts.calls
        self.query_tokens += counts.rows
        self._key_tokens += counts.keys
        self._dense_pairs += counts.pairs
        self._kept = self._kept + kept
        self._pairs = self._pairs + pairs

    def count_exact(self, counts: Counts, reason: str) -> None:
        """Adds a served call that attended to everything.

        Args:
          reason: why, in a layer that the setting names.
        """
        self._count(counts, counts.keys, counts.pairs)
        if self.named:
            self.exact[reason or "the method chose so"] += counts.calls

    def count_stock(self, prompts: Counts, reason: str, calls: int = 1) -> None:
        """Adds calls of prompts that the engine's own kernel attended to, exactly."""
        self.stock[reason] += calls
        self._key_tokens += prompts.keys
        self._kept = self._kept + prompts.keys
        self._dense_pairs += prompts.pairs
        self._pairs = self._pairs + prompts.pairs

    def count_sparse(
        self,
        sequences: list[tuple[int, int]],
        sets: Selection,
        near: int,
        pairs: float | None = None,
    ) -> None:
        """Adds a served call that attended to sets. Tensors of a GPU are added up where they live:
        reading them would wait for it.

        Args:
          sequences: query rows and keys of each.
          sets: torch tensors.
          near: keys that a query sees which its set left out.
          pairs: as the library counted them, blocks included; None = what the sets say.
        """
        dense = 0
        kept: Any = sets.kept.sum()
        if kept.device.type == "cpu":
            kept = int(kept)
            counts = zip(sets.kept.tolist(), sequences)
            dense = sum(count >= k_len for count, (_, k_len) in counts)
        if pairs is None:
            pairs = computed_pairs(sets, sequences, near)
        elif dense and pairs < sum(dense_pairs(*size) for size in sequences):
            # Blocks that leave pairs of every token out are sparse, too.
            dense = 0 if dense == len(sequences) else dense
        self._count(Counts.of(sequences), kept, pairs)
        self.sparse_calls += len(sequences) - dense
        if dense:
            self.exact["leaving tokens or blocks out would not have paid"] += dense

    def count_tallied(self, counts: Counts) -> None:
        """Adds served calls that add what they kept and computed to a tally by themselves."""
        self.served += counts.calls
        self.sparse_calls += counts.calls
        self.query_tokens += counts.rows
        self._key_tokens += counts.keys
        self._dense_pairs += counts.pairs

    def copy(self) -> LayerReport:
        """Another that what follows is not added to."""
        return replace(self, exact=Counter(self.exact), stock=Counter(self.stock))

    def with_tally(self, kept: int, pairs: float) -> LayerReport:
        """A copy that has what a tally counted, too."""
        found = self.copy()
        found._kept, found._pairs = found._kept + kept, found._pairs + pairs
        return found

    def clear(self) -> None:
        """Forgets the calls."""
        self.served = self.sparse_calls = self.query_tokens = 0
        self._key_tokens = self._dense_pairs = self._kept = self._pairs = 0
        self.uncounted = False
        self.exact.clear()
        self.stock.clear()

    @property
    def key_tokens(self) -> int:
        """Keys of the served calls."""
        return self._key_tokens

    @property
    def kept_tokens(self) -> float:
        """Those that were kept; of a GPU's calls reading this waits for it."""
        return float(self._kept)

    @property
    def kept_share(self) -> float | None:
        """Kept tokens over tokens of the served calls, and of prompts that an engine's own kernel
        attended to exactly in our place; None when there were none."""
        return float(self._kept) / self._key_tokens if self._key_tokens else None

    @property
    def pairs_share(self) -> float | None:
        """Query-key pairs computed over those of dense attention, blocks included; None when there
        were no such calls, or they were not counted."""
        if self.uncounted or not self._dense_pairs:
            return None
        return float(self._pairs) / self._dense_pairs

    def __str__(self) -> str:
        text = f"layer {self.layer:3d}  {'sparse' if self.named else 'exact ':6s}"
        if self.served:
            text += f"  served {self.served} calls, {self.query_tokens} query tokens"
            text += f", kept {self.kept_share:.1%}"
            text += "" if self.pairs_share is None else f", {self.pairs_share:.1%} of the pairs"
        for reason, calls in self.exact.items():
            text += f"; exact {calls} calls ({reason})"
        for reason, calls in self.stock.items():
            text += f"; stock {calls} calls ({reason})"
        return text


class Report(list):
    """LayerReports in layer order; prints as a table.

    Args:
      layers: the reports.
      named: layers that the setting names, with and without an attention call.
    """

    def __init__(self, layers: Iterable[LayerReport] = (), named: Iterable[int] = ()) -> None:
        super().__init__(sorted(layers, key=lambda r: r.layer))
        self.named = sorted({*named, *(r.layer for r in self if r.named)})

    def _share(self, layers: list[LayerReport]) -> float | None:
        keys = sum(r._key_tokens for r in layers)
        return sum(float(r._kept) for r in layers) / keys if keys else None

    @property
    def kept_share(self) -> float | None:
        """Of the layers that the setting names, together; None when none served a call."""
        return self._share([r for r in self if r.named])

    @property
    def kept_share_of_all(self) -> float | None:
        """Of all layers together, exact ones too; None when none served a call."""
        return self._share(self)

    @property
    def pairs_share(self) -> float | None:
        """Query-key pairs computed over those of dense attention, of all layers together; None when
        there were none, or some were not counted."""
        if any(r.uncounted for r in self):
            return None
        dense = sum(r._dense_pairs for r in self)
        return sum(float(r._pairs) for r in self) / dense if dense else None

    @property
    def never_sparse(self) -> dict[int, str]:
        """Layers that the setting names, but that were sparse in no call, and why."""
        found = {layer: "no attention call" for layer in self.named}
        for report in self:
            if report.layer not in found:
                continue
            if report.sparse_calls:
                del found[report.layer]
                continue
            why = [reason for reason in (*report.exact, *report.stock) if reason != "decode"]
            found[report.layer] = ", ".join(why) or "decode alone"
        return found

    def asdict(self) -> list[dict[str, Any]]:
        """JSON-able."""
        return [
            {
                "layer": r.layer,
                "sparse": r.named,
                "served": r.served,
                "sparse_calls": r.sparse_calls,
                "query_tokens": r.query_tokens,
                "kept_share": r.kept_share,
                "pairs_share": r.pairs_share,
                "exact": dict(r.exact),
                "stock": dict(r.stock),
            }
            for r in self
        ]

    def __str__(self) -> str:
        if not self:
            return "no attention call yet"
        lines = [str(report) for report in self]
        if self.kept_share_of_all is not None:
            sparse = "none" if self.kept_share is None else f"{self.kept_share:.1%}"
            share = self.pairs_share
            pairs = "blocks not counted" if share is None else f"{share:.1%} of the query-key pairs computed"
            lines.append(
                f"kept: sparse layers {sparse}, all layers {self.kept_share_of_all:.1%}; {pairs}"
            )
        by_reason: dict[str, list[int]] = {}
        for layer, reason in self.never_sparse.items():
            by_reason.setdefault(reason, []).append(layer)
        for reason, layers in by_reason.items():
            listed = ", ".join(map(str, layers))
            lines.append(f"named sparse, never were: layers {listed} ({reason})")
        return "\n".join(lines)
