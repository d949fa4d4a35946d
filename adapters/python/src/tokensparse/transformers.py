# SPDX-License-Identifier: MIT
"""Token sparse attention inside Hugging Face transformers.

    import tokensparse.transformers as ts
    model.set_attn_implementation("tokensparse")          # or attn_implementation="tokensparse"
    ts.configure(model, coverage=0.01, share="kv_group",
                 sparse_layers=ts.profile(model, tokenizer, text).sparse_layers)

Importing this module registers an attention function and its mask function under the name
"tokensparse"; no model is patched. Prompts of more than 64 tokens are served by tokensparse, exactly
until `configure` (or TOKENSPARSE_COVERAGE) says otherwise. Decode, short calls, sliding windows,
training and every mask that is not plain causal go to the stock kernel. `report(model)` says what
happened in each layer.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
import weakref
from typing import Any

from . import ops
from ._library import Unsupported
from ._need import need
from ._profile import Profile, measure_drift
from ._report import LayerReport, Report
from .options import Options, TokensparseWarning

torch = need("torch", "2.6", "tokensparse.transformers")
need("transformers", "5.0", "tokensparse.transformers")

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ._masks import as_mask, check_spans, dense_mask, is_spans, mask, options_of

__all__ = ["Options", "Profile", "Report", "configure", "profile", "report"]

NAME = "tokensparse"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_reports: weakref.WeakKeyDictionary[Any, LayerReport] = weakref.WeakKeyDictionary()


def _attention_modules(model: Any) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "config")]


def configure(model: Any, options: Options | None = None, **changes: Any) -> Options:
    """Sets the options of a model; they are stored in its config and saved with it.

    Args:
      model: a transformers model.
      options: new options; None = the present ones.
      **changes: fields of Options to change, e.g. coverage=0.01.

    Returns:
      The options now in force.

    Raises:
      InvalidArgument: an option that is not one, or breaks its rule.
    """
    base = options if options is not None else options_of(model.config)
    merged = Options.make({**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)}})
    if changes:
        fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
        merged = Options.make({**fields, **changes})
    if merged.caution:
        warnings.warn(merged.caution, TokensparseWarning, stacklevel=2)
    configs = {id(m.config): m.config for m in [model, *_attention_modules(model)]}
    for config in configs.values():
        setattr(config, NAME, merged.asdict())
    return merged


def report(model: Any, reset: bool = False) -> Report:
    """What happened in each attention layer since the last reset.

    Args:
      model: a model that ran with attn_implementation="tokensparse".
      reset: forget it afterwards.
    """
    modules = [m for m in _attention_modules(model) if m in _reports]
    found = Report(sorted((_reports[m] for m in modules), key=lambda r: r.layer))
    if reset:
        for module in modules:
            del _reports[module]
    return found


def profile(
    model: Any, tokenizer: Any, text: str, *, delta: float = 0.5, max_tokens: int = 4096
) -> Profile:
    """Finds the layers that may drop tokens: those that change the residual stream least.

    The drift of a layer is the mean over the tokens of |h_out - h_in| / |h_in| on a calibration
    text, with exact attention; the lower `delta` share of the layers is sparse, the first and the
    last never. A text of 4,096 tokens is enough.

    Args:
      model, tokenizer: of transformers.
      text: ordinary text, like the prompts to come.
      delta: share of the layers to make sparse, [0, 1].
      max_tokens: of the text that are used.

    Returns:
      Profile with `sparse_layers` and `drift`; `save(path)` writes JSON for TOKENSPARSE_PROFILE.
    """
    tokens = tokenizer(text, return_tensors="pt").input_ids[:, :max_tokens]
    stored = getattr(model.config, NAME, None)
    configs = {id(m.config): m.config for m in [model, *_attention_modules(model)]}.values()
    for config in configs:
        setattr(config, NAME, {})
    try:
        return measure_drift(model, tokens.to(model.device), delta)
    finally:
        for config in configs:
            setattr(config, NAME, stored)


def _stock(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any):
    """The kernel the model would use without us: sdpa, or eager for what sdpa leaves out."""
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


def _reason(query: Any, key: Any, value: Any, dropout: float, is_causal: Any, kwargs: Any) -> str:
    """Why a call with a plain causal mask is not ours; empty when it is."""
    if kwargs.get("sliding_window") is not None:
        return "sliding window"
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            return name
    if is_causal is False:
        return "not causal"
    if dropout:
        return "dropout"
    if torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    ):
        return "gradients are wanted"
    if query.dtype not in _DTYPES or key.dtype != value.dtype:
        return f"dtype {query.dtype}"
    if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return "head dims of q, k and v differ"
    if query.device.type not in ("cpu", "cuda"):
        return f"device {query.device.type}"
    return ""


def _foreign(query: Any, attention_mask: Any, kwargs: Any) -> str:
    """Why a call did not come with spans."""
    if query.shape[2] == 1:
        return "decode"
    if kwargs.get("sliding_window") is not None:
        return "sliding window"
    if query.shape[2] < options_of(None).min_query:
        return "short call"
    if attention_mask is None:
        return "no mask, or not made by this package"
    return getattr(attention_mask, "tokensparse_reason", "a mask of the caller's own")


def attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """The attention function: query [B, H, Sq, D], key and value [B, Hkv, Skv, D].

    Returns:
      ([B, Sq, H, D], None)
    """
    if torch.compiler.is_compiling():
        if is_spans(attention_mask):  # made before the compiled part
            attention_mask = dense_mask(attention_mask, query, key)
        return _stock(
            module, query, key, value, attention_mask,
            dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs,
        )  # fmt: skip
    seen = _reports.get(module)
    if seen is None:
        seen = _reports[module] = LayerReport(getattr(module, "layer_idx", None) or 0)
    ours = is_spans(attention_mask)
    if ours:
        spans = check_spans(attention_mask, query, key)
        reason = _reason(query, key, value, dropout, is_causal, kwargs)
    else:
        reason = _foreign(query, attention_mask, kwargs)
    if not reason:
        try:
            return _serve(module, seen, query, key, value, spans, scaling), None
        except Unsupported as error:  # a shape that this backend cannot serve
            reason = str(error)
    seen.stock[reason] += 1
    if ours:
        attention_mask = dense_mask(attention_mask, query, key)
    return _stock(
        module, query, key, value, attention_mask,
        dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs,
    )  # fmt: skip


def _serve(
    module: Any,
    seen: LayerReport,
    query: Any,
    key: Any,
    value: Any,
    spans: list[list[int]],
    scaling: float | None,
) -> Any:
    config = getattr(module, "config", None)
    options = options_of(config)
    sparse = options.is_sparse(seen.layer, getattr(config, "num_hidden_layers", None))
    batch, heads, q_len, dim = query.shape
    out = query.new_empty((batch, q_len, heads, dim))
    for row, (first, past, offset) in enumerate(spans):
        low, high = max(first - offset, 0), max(past - offset, 0)
        out[row, :low] = 0  # padding
        out[row, high:] = 0
        if high <= low:
            continue
        keys = slice(first, offset + high)
        long = options.is_long_enough(high - low, keys.stop - keys.start)
        seen.too_short += sparse and not long
        _, kept = ops.prefill(
            query[row, :, low:high].transpose(0, 1),
            key[row, :, keys].transpose(0, 1),
            value[row, :, keys].transpose(0, 1),
            out=out[row, low:high],
            scale=scaling,
            return_kept=True,
            **options.prefill_arguments(sparse and long, str(query.dtype)),
        )
        kept = int(kept[0]) if query.device.type == "cpu" else kept[0].long()
        seen.count(high - low, keys.stop - keys.start, kept, sparse)
    return out


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
