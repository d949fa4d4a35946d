# SPDX-License-Identifier: MIT
"""The masks that transformers hands to our attention: spans of real tokens instead of matrices."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, sdpa_mask
from transformers.utils.import_utils import is_tracing

from ._environment import serve_rows
from ._library import InvalidArgument

_serve_rows = functools.cache(serve_rows)


def why_short(q_length: int) -> str:
    """Why a call of so few query rows is not ours; empty when there are enough."""
    if q_length >= _serve_rows():
        return ""
    return "decode" if q_length == 1 else "short call"


def _spans(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any,
    kv_offset: int,
    mask_function: Any,
    attention_mask: Any,
    allow_is_causal_skip: bool,
) -> Any:
    """int32 [batch, 1, q_length, 3] on the host: first and one past the last real token of each row
    of the batch, and the position of the first query. Where the mask is anything but causal over such
    spans, text that says why.

    The shape is one that transformers hands on where it would build the mask a second time (`generate`
    builds it before the forward for caches of a fixed size), and it tells the call it belongs to.
    """
    if q_length == 1 or is_tracing(attention_mask):
        return ""
    if short := why_short(q_length):
        return short
    if mask_function is not causal_mask_function or not allow_is_causal_skip:
        return "mask is not plain causal"
    if kv_offset != 0:
        return "cache holds a window of the keys"
    offset = int(q_offset)
    end = offset + q_length
    if end > kv_length:
        return "cache holds fewer keys than positions"
    if attention_mask is None:
        return as_mask([[0, end, offset]] * batch_size, q_length)
    if attention_mask.shape[1] < end:
        raise InvalidArgument(
            f"attention_mask: must cover the {end} tokens up to the last query, "
            f"covers {attention_mask.shape[1]}"
        )
    seen = attention_mask[:, :end].to(torch.int32)
    last = end - seen.flip(1).argmax(1)
    bounds = torch.stack([seen.argmax(1), last, seen.sum(1)], 1).cpu().tolist()
    if any(count not in (0, past - first) for first, past, count in bounds):
        return "holes in the attention mask"
    rows = [[first, past if count else first, offset] for first, past, count in bounds]
    return as_mask(rows, q_length)


def as_mask(rows: list[list[int]], q_length: int) -> Any:
    return torch.tensor(rows, dtype=torch.int32)[:, None, None].expand(-1, 1, q_length, 3)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Any = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Any:
    """The mask of a forward pass: spans for calls that tokensparse serves, else sdpa's mask."""
    spans = _spans(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask,
        allow_is_causal_skip,
    )
    if not isinstance(spans, str):
        return spans
    made = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        **kwargs,
    )
    if made is not None and spans:
        made.tokensparse_reason = spans
    return made


def is_spans(attention_mask: Any) -> bool:
    return (
        attention_mask is not None
        and attention_mask.dtype == torch.int32
        and attention_mask.dim() == 4
        and attention_mask.shape[-1] == 3
    )


def check_spans(spans: Any, query: Any, key: Any) -> list[list[int]]:
    """The spans of each row of the batch.

    Raises:
      InvalidArgument: they were made for another call.
    """
    # All layers of a forward pass see the same mask; on a GPU to read it is to wait for it.
    batch, _, q_len, _ = query.shape
    shape = batch, q_len, key.shape[2]
    rows, checked = getattr(spans, "tokensparse_rows", (None, None))
    if checked == shape:
        return rows
    if rows is None:
        rows = spans[:, 0, 0].tolist()
    longest = max(past for _, past, _ in rows)
    if (len(rows), spans.shape[2]) != (batch, q_len) or longest > key.shape[2]:
        raise InvalidArgument(
            f"attention_mask: must be made for {batch} sequences of {q_len} query rows and at most "
            f"{key.shape[2]} keys, is for {len(rows)} of {spans.shape[2]} and {longest} keys"
        )
    spans.tokensparse_rows = rows, shape
    return rows


def dense_mask(spans: Any, query: Any, key: Any) -> Any:
    """The boolean [batch, 1, Sq, Skv] mask that the spans stand for."""
    first, past, offset = spans[:, 0, 0].to(query.device)[:, :, None, None].unbind(1)
    rows = torch.arange(query.shape[2], device=query.device)[:, None] + offset
    columns = torch.arange(key.shape[2], device=query.device)[None]
    visible = (columns <= rows) & (columns >= first) & (columns < past)
    # A row of padding sees nothing; let it see itself so that its softmax stays finite.
    return (visible | ((columns == rows) & ~visible.any(-1, keepdim=True)))[:, None]
