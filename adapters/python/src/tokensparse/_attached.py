# SPDX-License-Identifier: MIT
"""The attention layers of transformers' models: what each is asked to do, and what it did."""

from __future__ import annotations

import functools
import os
import weakref
from typing import Any

from . import methods
from ._environment import setting_from_environment
from ._model import check_setting, numbers, sparse_layers
from ._recommended import RECOMMENDED
from ._served import Same, ServedLayer
from ._stock import NAME, STOCK, is_sdpa, module_for
from .setting import Setting

METHOD = "tokensparse_method"  # in a config
layers: dict[int, AttentionLayer] = {}  # by the id of an attention module, as long as it lives
environment = functools.cache(setting_from_environment)


def stored_in(config: Any) -> tuple[Any, Any, Any]:
    """Setting, method and stock kernel of a config: slow to read, so only calls that may be served do."""
    return tuple(getattr(config, name, None) for name in (NAME, METHOD, STOCK))


def setting_of(config: Any) -> Setting:
    stored = getattr(config, NAME, None)
    if stored is not None:
        return Setting.make(stored)
    asked = environment()
    by_model = asked.is_sparse and os.environ.get("TOKENSPARSE_SETTING") == RECOMMENDED
    return setting_from_environment(config=config) if by_model else asked


@functools.lru_cache(maxsize=1)
def _asked(config: Same, stored: Same) -> tuple[Setting, frozenset[int], int | None]:
    """What a config asks for, the layers that are sparse then, and how many there are: the same for all
    layers of a model, and slow to find."""
    setting = setting_of(config.it)
    return setting, sparse_layers(setting, config.it), numbers(config.it).get("num_layers")


@functools.lru_cache(maxsize=1)
def _check(setting: Same, config: Same) -> None:
    """Whether a setting is one for a model: the same for all its layers, too."""
    check_setting(setting.it, config.it)


def _check_once(setting: Setting, config: Any) -> None:
    _check(Same(setting), Same(config))


class AttentionLayer(ServedLayer):
    """The layer of a module.

    Attributes:
      stored: what of the config it was made from.
      like: the module as its stock kernel is to see it; None of sdpa, which sees the module.
    """

    _check_setting = staticmethod(_check_once)

    def __init__(self, module: Any, config: Any, stored: tuple[Any, Any, Any]) -> None:
        setting, sparse, count = _asked(Same(config), Same(stored[0]))
        index = getattr(module, "layer_idx", None) or 0
        super().__init__(index, setting, config, stored[1] or methods.default(), sparse, count)
        self.stored = stored
        self.stock = stored[2] or NAME
        self.stock_is_sdpa = is_sdpa(self.stock)
        self.hands_over = self.stock != NAME and self.is_ours
        self.like = None if self.stock_is_sdpa else module_for(module, self.stock)
        key = id(module)
        self.module = weakref.ref(module, lambda _: layers.pop(key, None))


def layer_of(module: Any, spans: Any = None) -> AttentionLayer:
    """The layer of a module; one that is to serve a call of `spans` follows what its config says now,
    which is read once a forward pass: all its layers see the same spans."""
    found = layers.get(id(module))
    if found is not None and spans is None:
        return found
    config = getattr(module, "config", None)
    read_of, stored = getattr(spans, "tokensparse_config", (None, None))
    if stored is None or read_of is not config:
        stored = stored_in(config)
        if found is not None and _same(found.stored, stored):
            stored = found.stored
        if spans is not None:
            spans.tokensparse_config = config, stored
    if found is None or not _same(found.stored, stored):
        found = attach(module, config, stored)
    found.stored = stored
    return found


def _same(one: tuple[Any, Any, Any], other: tuple[Any, Any, Any]) -> bool:
    return one is other or (one[0] is other[0] and one[1:] == other[1:])


def attention_modules(model: Any) -> list[Any]:
    # hasattr() of what a module lacks is slow.
    return [m for m in model.modules() if "layer_idx" in vars(m) and "config" in vars(m)]


def configs_of(model: Any, modules: list[Any] | None = None) -> list[Any]:
    modules = attention_modules(model) if modules is None else modules
    return list({id(m.config): m.config for m in [model, *modules]}.values())


def attach(module: Any, config: Any, stored: tuple[Any, Any, Any]) -> AttentionLayer:
    """Makes the layer of a module; what another counted is forgotten."""
    made = layers[id(module)] = AttentionLayer(module, config, stored)
    return made


def attach_all(modules: list[Any]) -> None:
    """Makes the layers of a model: its first prompt finds them made."""
    _asked.cache_clear()
    _check.cache_clear()
    stored: dict[int, tuple[Any, Any, Any]] = {}  # by config
    for module in modules:
        config = module.config
        if id(config) not in stored:
            stored[id(config)] = stored_in(config)
        attach(module, config, stored[id(config)])
