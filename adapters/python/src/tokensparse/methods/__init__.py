# SPDX-License-Identifier: MIT
"""Who decides what a layer attends to, in front of the attention call of transformers and vLLM.

A method is a function `choose(layer, q, k, state)` that returns one of

    Dense()      attend to everything
    Vote(...)    the library's own vote, taken inside the attention call
    Selection    the sets of tokens to attend to, made by whatever means

`register` gives it a name; `configure(model, method=NAME)` and TOKENSPARSE_METHOD take that. The
default is "tsa", Token Sparse Attention. Methods work where attention is called: one that drops rows
for all layers that follow does not fit here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .. import ops
from .._call import Selection, lengths
from .._exact import ExactCall
from .._library import InvalidArgument
from ..setting import Setting

__all__ = [
    "Choice",
    "Dense",
    "Selection",
    "State",
    "Vote",
    "attend",
    "chooser",
    "default",
    "register",
]


@dataclass(frozen=True)
class Dense:
    """Attend to everything.

    Attributes:
      reason: why a layer that the setting names does, for the report.
    """

    reason: str = ""


@dataclass(frozen=True)
class Vote:
    """Attend to what the library's `score` and `select` choose, in one call with attention.

    Attributes:
      coverage, keep, window, pool, min_tokens, share: see `tokensparse.prefill`.
    """

    coverage: float
    keep: float | None
    window: int
    pool: int
    min_tokens: int
    share: str


Choice = Dense | Vote | Selection
_EXACT = "tokensparse exact call"  # in a State's memory


@dataclass
class State:
    """What a method may know beside q and k.

    Attributes:
      setting: in force.
      named: whether the setting names this layer.
      num_layers: of the model, where known.
      precision: of the products, "f32" or "bf16".
      scale: of q k; None = 1 / sqrt(D).
      q_offsets, k_offsets: the batch, None for one sequence, see `tokensparse.ops`.
      memory: a method's own notes, shared by the layers of one forward pass (and one sequence of a
        batch, where sequences are served one by one).
    """

    setting: Setting
    named: bool
    num_layers: int | None
    precision: str
    scale: float | None
    q_offsets: Any = None
    k_offsets: Any = None
    memory: dict[str, Any] = field(default_factory=dict)

    def lengths(self, q: Any, k: Any) -> list[tuple[int, int]]:
        """Query rows and keys of each sequence."""
        k_len = 0 if self.k_offsets is not None else k.shape[0]
        return lengths(q.shape[0], k_len, self.q_offsets, self.k_offsets)


Chooser = Callable[[int, Any, Any, State], Choice]
_choosers: dict[str, Chooser] = {}


def register(name: str, choose: Chooser) -> None:
    """Gives a method a name; one that has it already is replaced."""
    _choosers[name] = choose


def chooser(name: str) -> Chooser:
    """The method of a name.

    Raises:
      InvalidArgument: there is none.
    """
    if name not in _choosers:
        known = ", ".join(sorted(_choosers))
        raise InvalidArgument(f"method: must be one of {known}, is {name!r}")
    return _choosers[name]


def default() -> str:
    """TOKENSPARSE_METHOD, else "tsa"."""
    return os.environ.get("TOKENSPARSE_METHOD") or "tsa"


@dataclass(frozen=True)
class Attended:
    """What a call attended to.

    Attributes:
      selected: the sets of tokens; None = everything.
      pairs: query-key pairs that were computed, all sequences together, the mean over the heads; None
        on a GPU.
    """

    selected: Selection | None = None
    pairs: float | None = None


def _attend_to_all(q: Any, k: Any, v: Any, out: Any, state: State) -> None:
    tensors = (q, k, v, out)
    more = (state.scale, state.precision, state.q_offsets, state.k_offsets)
    if q.device.type != "cpu":
        names = ("scale", "precision", "q_offsets", "k_offsets")
        ops.prefill(q, k, v, coverage=0.0, out=out, **dict(zip(names, more)))
        return
    found = state.memory.get(_EXACT)
    if found is None or not found.is_for(tensors, *more):
        found = state.memory[_EXACT] = ExactCall(tensors, *more)
    found.run(tensors)


def attend(choice: Choice, q: Any, k: Any, v: Any, out: Any, state: State) -> Attended:
    """Attends as chosen and writes to `out`. Arrays as in `tokensparse.prefill`. The setting's block
    pattern is of what is chosen here."""
    call: dict[str, Any] = dict(
        out=out,
        scale=state.scale,
        precision=state.precision,
        q_offsets=state.q_offsets,
        k_offsets=state.k_offsets,
    )
    if isinstance(choice, Dense):
        _attend_to_all(q, k, v, out, state)
        return Attended()
    setting = state.setting
    if setting.blocks:
        options = dict(setting.blocks)
        call.update(pattern=options.pop("pattern"), pattern_options=options)
    counted = q.device.type == "cpu"
    call.update(dropped=setting.dropped, sink=setting.sink, band=setting.band)
    if isinstance(choice, Vote):
        call.update(vars(choice), when=setting.when)
    else:
        call.update(sets=choice)
    _, *found = ops.prefill(
        q, k, v, return_selection=isinstance(choice, Vote), return_pairs=counted, **call
    )
    pairs = found.pop() if counted else None
    return Attended(found[0] if isinstance(choice, Vote) else choice, pairs)


from . import tsa

register("tsa", tsa.choose)
