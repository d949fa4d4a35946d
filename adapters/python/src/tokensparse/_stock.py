# SPDX-License-Identifier: MIT
"""What attends in transformers where tokensparse does not: sdpa, or what `configure(stock=)` names."""

from __future__ import annotations

import sys
import weakref
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
    """What is like an object but for some attributes; it does not keep the object."""

    def __init__(self, it: Any, **changes: Any) -> None:
        self.__dict__.update(changes, _it=weakref.ref(it))

    def __getattr__(self, name: str) -> Any:  # what was not changed
        return getattr(self._it(), name)


def module_for(module: Any, name: str) -> Any:
    """A module like this one whose config names the attention implementation `name`."""
    config = _As(module.config, _attn_implementation=name)
    return _As(module, config=config, layer_idx=getattr(module, "layer_idx", None))


def _once(spans: Any, query: Any, key: Any) -> Any:
    """The dense mask of spans: all layers of a forward pass see the same."""
    made = getattr(spans, "tokensparse_dense", None)
    if made is None or made.device != query.device or made.shape[-1] != key.shape[2]:
        made = spans.tokensparse_dense = dense_mask(spans, query, key)
    return made


def is_sdpa(name: str) -> bool:
    """Whether the kernel `name` is sdpa, which tokensparse stands for where it does not attend itself."""
    return name in (NAME, "sdpa")


def end_of(spans: Any, query: Any) -> int:
    """One past the position of the last query of spans that were checked."""
    return spans.tokensparse_rows[0][0][2] + query.shape[2]


def mask_for(name: str, spans: Any, query: Any, key: Any) -> Any:
    """What the kernel `name` needs to attend as spans that were checked say, to keys up to the last
    query's; None where that is nothing. Made once a forward pass."""
    rows, end = spans.tokensparse_rows[0], key.shape[2]
    plain = all(first == 0 and past == end for first, past, _ in rows)
    if is_sdpa(name):  # without a mask, sdpa takes the first query for the first key's
        return None if plain and query.shape[2] == end else _once(spans, query, key)
    if plain:
        return None
    made = getattr(spans, "tokensparse_padding", None)
    if made is None or made.device != query.device or made.shape[1] != end:
        places = torch.arange(end)
        seen = [(places >= first) & (places < past) for first, past, _ in rows]
        made = spans.tokensparse_padding = torch.stack(seen).to(query.device)
    return made


def stock(
    name: str, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
):
    """The kernel `name` for what is not ours, sdpa by our own; plain spans need no mask there."""
    if not is_spans(attention_mask) and (attention_mask is not None or is_sdpa(name)):
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is not None:
        check_spans(attention_mask, query, key)
        end = end_of(attention_mask, query)
        if end < key.shape[2]:  # a cache of fixed size
            key, value = key[:, :, :end], value[:, :, :end]
        attention_mask = mask_for(name, attention_mask, query, key)
    if is_sdpa(name):
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    attend = ALL_ATTENTION_FUNCTIONS[name]
    return attend(module_for(module, name), query, key, value, attention_mask, **kwargs)
