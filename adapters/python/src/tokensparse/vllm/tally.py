# SPDX-License-Identifier: MIT
"""What sparse layers kept and computed, added up on the GPU by the calls themselves and looked at when
somebody asks: a report waits for the GPU, a server's metrics read a copy that follows behind."""

from __future__ import annotations

import torch

_SLOTS = 4096  # layers of a process


class Tallies:
    """Two counters for each layer of a device: kept tokens, and query-key pairs of all heads."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.inference_mode(False):  # made in a forward pass, cleared outside of one
            self.counters = torch.zeros(_SLOTS, 2, dtype=torch.int64, device=device)
            self._copy = torch.zeros(_SLOTS, 2, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.used = 0

    def new(self) -> int:
        """The slot of a layer."""
        if self.used == _SLOTS:
            raise RuntimeError(f"tokensparse: more than {_SLOTS} layers in a process")
        self.used += 1
        return self.used - 1

    def address(self, slot: int) -> int:
        """Where the library adds to a slot."""
        return self.counters.data_ptr() + 16 * slot

    def add_kept(self, slot: int, kept: torch.Tensor) -> None:
        """Adds a call's kept tokens, [sequences], that it told and did not add itself."""
        self.counters[slot, 0].add_(kept.sum())

    def follow(self) -> None:
        """Brings the copy up to date once the GPU has done what it was given so far."""
        self._copy[: self.used].copy_(self.counters[: self.used], non_blocking=True)

    def behind(self) -> list[list[int]]:
        """What the copy says now."""
        return self._copy[: self.used].tolist()

    def read(self) -> list[list[int]]:
        """All of it; waits for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.counters[: self.used].tolist()

    def clear(self) -> None:
        """Starts anew."""
        self.counters.zero_()
        self._copy.zero_()
        self.read()

    def forget(self) -> None:
        """Has no layers any more."""
        self.clear()
        self.used = 0


_tallies: dict[torch.device, Tallies] = {}


def tallies_of(device: torch.device) -> Tallies:
    """Those of a device."""
    found = _tallies.get(device)
    if found is None:
        found = _tallies[device] = Tallies(device)
    return found
