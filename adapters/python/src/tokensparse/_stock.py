# SPDX-License-Identifier: MIT
"""What attends in transformers where tokensparse does not: sdpa, or what `configure(stock=)` names."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ._library import InvalidArgument
from ._masks import as_mask, check_spans, dense_mask, is_spans

NAME = "tokensparse"
STOCK = "tokensparse_stock"  # in a config


def check_stock(name: str | None) -> None:
    """
    Raises:
      InvalidArgument: there is no such kernel.
    """
    if name not in (None, NAME) and name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        raise InvalidArgument(
            f'stock: must be "{NAME}" or an attention implementation of transformers, got "{name}"'
        )


def sdpa(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any):
    """sdpa, or eager for what sdpa leaves out."""
    if kwargs.get("softcap") is None and kwargs.get("s_aux") is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise NotImplementedError(
            f"{type(module).__name__} uses soft capping or attention sinks and has no eager "
            "attention to fall back to"
        )
    if attention_mask is None and query.shape[2] > 1:
        offset = key.shape[2] - query.shape[2]
        spans = as_mask([[0, key.shape[2], offset]] * query.shape[0], query.shape[2])
        attention_mask = dense_mask(spans, query, key)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(
            ~attention_mask, lowest
        )
    return eager(module, query, key, value, attention_mask, **kwargs)[0], None


class _As:
    """A module whose config names another attention implementation, and else a module like it."""

    def __init__(self, module: Any, **changes: Any) -> None:
        self._module = module
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:  # what was not changed
        return getattr(self._module, name)


def _once(spans: Any, query: Any, key: Any) -> Any:
    """The dense mask of spans: all layers of a forward pass see the same."""
    made = getattr(spans, "tokensparse_dense", None)
    if made is None or made.device != query.device or made.shape[-1] != key.shape[2]:
        made = spans.tokensparse_dense = dense_mask(spans, query, key)
    return made


def stock(
    name: str, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
):
    """The kernel `name` for what is not ours, sdpa by our own; plain spans need no mask there."""
    if not is_spans(attention_mask) and (attention_mask is not None or name in (NAME, "sdpa")):
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    rows = None
    if attention_mask is not None:
        rows = check_spans(attention_mask, query, key)
        end = rows[0][2] + query.shape[2]
        if end < key.shape[2]:  # a cache of fixed size
            key, value = key[:, :, :end], value[:, :, :end]
        if all(first == 0 and past == end for first, past, _ in rows):
            rows = None
    if name in (NAME, "sdpa"):  # without a mask, sdpa takes the first query for the first key's
        plain = rows is None and query.shape[2] == key.shape[2]
        attention_mask = None if plain else _once(attention_mask, query, key)
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    mask = None
    if rows is not None:  # padding
        places = torch.arange(key.shape[2])
        seen = [(places >= first) & (places < past) for first, past, _ in rows]
        mask = torch.stack(seen).to(query.device)
    return _call(ALL_ATTENTION_FUNCTIONS[name], name, module, query, key, value, mask, **kwargs)


def _call(attend: Callable[..., Any], name: str, module: Any, *tensors: Any, **kwargs: Any):
    config = _As(module.config, _attn_implementation=name)
    return attend(_As(module, config=config), *tensors, **kwargs)


def without_mask(name: str, spans: Any, query: Any, key: Any) -> Callable[..., Any] | None:
    """What calls the kernel `name`, with the module, query, key and value, where `spans` need no mask
    there and every key is one of theirs; None where they do, and of sdpa, which is told apart."""
    end = key.shape[2]
    if name in (NAME, "sdpa") or end - query.shape[2] != spans.tokensparse_rows[0][0][2]:
        return None
    if any(first != 0 or past != end for first, past, _ in spans.tokensparse_rows[0]):
        return None
    attend = functools.partial(_call, ALL_ATTENTION_FUNCTIONS[name], name)
    return lambda module, query, key, value, **kwargs: attend(
        module, query, key, value, None, **kwargs
    )
