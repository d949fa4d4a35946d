# SPDX-License-Identifier: MIT
"""What the config of a model says: its numbers, and which of its layers a setting makes sparse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ._library import InvalidArgument
from .setting import Setting

# Kinds of layer in `layer_types` whose attention sees the whole prompt.
_WHOLE_PROMPT = ("full_attention", "attention", "hybrid")


def text_config(config: Any) -> Any:
    """The part of a config that describes the decoder."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def numbers(config: Any) -> dict[str, int]:
    """num_layers, num_heads, num_kv_heads and head_dim, as far as the config knows them."""
    text = text_config(config)
    heads = getattr(text, "num_attention_heads", None)
    hidden = getattr(text, "hidden_size", None)
    found = {
        "num_layers": getattr(text, "num_hidden_layers", None),
        "num_heads": heads,
        "num_kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None)
        or (hidden // heads if hidden and heads else None),
    }
    return {name: number for name, number in found.items() if isinstance(number, int)}


def kinds_of_layers(config: Any, layers: Iterable[int]) -> list[str]:
    """Of each of these layers: empty where it attends to the whole prompt, else what it is instead."""
    text = text_config(config)
    kinds = getattr(text, "layer_types", None)
    if kinds:
        found = [kinds[layer] if layer < len(kinds) else "" for layer in layers]
        return ["" if kind in _WHOLE_PROMPT else kind for kind in found]
    kind = ""
    if getattr(text, "sliding_window", None) is not None:
        kind = "sliding_attention"
    elif getattr(text, "attention_chunk_size", None) is not None:
        kind = "chunked_attention"
    return [kind for _ in layers]


def whole_prompt_layers(config: Any) -> list[int]:
    """The layers that attend to the whole prompt."""
    count = numbers(config).get("num_layers", 0)
    kinds = kinds_of_layers(config, range(count))
    return [layer for layer, kind in enumerate(kinds) if not kind]


def sparse_layers(setting: Setting, config: Any) -> frozenset[int]:
    """The layers that a setting makes sparse in a model."""
    if not setting.is_sparse:
        return frozenset()
    if not isinstance(setting.layers, str):
        return frozenset(setting.layers)
    layers = whole_prompt_layers(config)
    if setting.layers == "middle":
        last = numbers(config).get("num_layers", 0) - 1
        layers = [layer for layer in layers if 0 < layer < last]
    return frozenset(layers)


def check_setting(setting: Setting, config: Any) -> str:
    """Whether a setting is one for this model.

    Returns:
      What a user should hear about the layers that it names; empty when nothing.

    Raises:
      InvalidArgument: it was made for another model, or names layers that this one lacks.
    """
    known = numbers(config)
    for name, number in setting.model.items():
        if name != "name" and known.get(name, number) != number:
            raise InvalidArgument(
                f"setting{' ' * bool(setting.name)}{setting.name}: is for a model with {name} {number}, "
                f"this one has {known[name]}"
            )
    if not setting.is_sparse:
        return ""
    if isinstance(setting.layers, str):
        if sparse_layers(setting, config):
            return ""
        return f"layers {setting.layers}: no such layer of this model attends to the whole prompt"
    count = known.get("num_layers")
    beyond = [layer for layer in setting.layers if count is not None and layer >= count]
    if beyond:
        raise InvalidArgument(
            f"layers: must be below {count}, the layers of this model, are {_listed(beyond)}"
        )
    kinds: dict[str, list[int]] = {}
    for layer, kind in zip(setting.layers, kinds_of_layers(config, setting.layers)):
        if kind:
            kinds.setdefault(kind, []).append(layer)
    return "; ".join(
        f"layers {_listed(layers)} will never be sparse: {kind}" for kind, layers in kinds.items()
    )


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))
