# SPDX-License-Identifier: MIT
"""One attention layer as tokensparse serves it, in whatever engine."""

from __future__ import annotations

from typing import Any

from . import methods
from ._model import check_setting, numbers, sparse_layers
from ._report import Counts, LayerReport
from .setting import Setting


class Same:
    """A key that is equal to one of the same object."""

    def __init__(self, it: Any) -> None:
        self.it = it

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.it is other.it


class ServedLayer:
    """A layer with its setting, its method and its report.

    Args:
      index: of the layer in the model.
      setting: in force.
      config: of the model.
      method: a name that `methods.chooser` knows.
      sparse: the layers that the setting makes sparse in the model, where that is known.
      num_layers: of the model, where that is known.
    """

    _check_setting = staticmethod(check_setting)

    def __init__(
        self,
        index: int,
        setting: Setting,
        config: Any,
        method: str = "tsa",
        sparse: frozenset[int] | None = None,
        num_layers: int | None = None,
    ) -> None:
        self.index = index
        self.setting = setting
        self.num_layers = num_layers or numbers(config).get("num_layers")
        self.choose = methods.chooser(method)
        if sparse is None:
            sparse = sparse_layers(setting, config)
        self.last_sparse = max(sparse, default=-1)
        self.is_ours = method == "tsa"  # what is exact is known before it chooses
        self.stock, self.hands_over = "", False  # whose exact calls are, as an engine says
        self.report = LayerReport(index, named=index in sparse)
        self._config = config
        self._checked = False

    def check(self) -> None:
        """Whether the setting is one for this model, once.

        Raises:
          InvalidArgument: it is not.
        """
        if not self._checked:
            self._check_setting(self.setting, self._config)
            self._checked = True

    def attend(
        self,
        q: Any,
        k: Any,
        v: Any,
        out: Any,
        scale: float | None,
        memory: dict[str, Any],
        q_offsets: Any = None,
        k_offsets: Any = None,
    ) -> None:
        """Chooses, attends, writes `out` and counts. Arrays as in `tokensparse.prefill`.

        Raises:
          InvalidArgument: the setting is not one for this model.
        """
        self.check()
        state = methods.State(
            setting=self.setting,
            named=self.report.named,
            num_layers=self.num_layers,
            precision=self.setting.products(str(q.dtype)),
            scale=scale,
            q_offsets=q_offsets,
            k_offsets=k_offsets,
            memory=memory,
        )
        choice = self.choose(self.index, q, k, state)
        attended = methods.attend(choice, q, k, v, out, state)
        sequences = state.lengths(q, k)
        if attended.selected is None:
            self.report.count_exact(Counts.of(sequences), getattr(choice, "reason", ""))
        else:
            local = self.setting.dropped == "local"
            near = self.setting.sink + self.setting.band if local else 0
            self.report.count_sparse(sequences, attended.selected, near, attended.pairs)
            self.report.uncounted |= attended.pairs is None and bool(self.setting.blocks)
