# SPDX-License-Identifier: MIT
"""Token sparse attention inside Hugging Face transformers.

    import tokensparse.transformers as ts
    model.set_attn_implementation("tokensparse")          # or attn_implementation="tokensparse"
    ts.configure(model)                                    # sparse: measured on it, or built-in
    ts.configure(model, setting="model.json", coverage=0.05)

Importing this module registers an attention function and its mask function under the name
"tokensparse"; no model is patched. Calls of 64 query rows and more are served by tokensparse (exact
ones on the CPU from 128 on 128 keys), exactly until `configure` (or TOKENSPARSE_SETTING,
TOKENSPARSE_COVERAGE, ...) says otherwise. Decode, short calls, sliding windows, training and every mask that is not plain causal go to the stock kernel, sdpa
or what `configure(model, stock="flash_attention_2")` names, which then has all that is exact.
`report(model)` says what happened in each layer.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from typing import Any

from . import methods
from ._context import lease
from ._environment import serve_pairs
from ._library import Unsupported
from ._model import check_setting, numbers, sparse_layers, text_config, whole_prompt_layers
from ._need import need
from ._profile import Profile, measure_drift
from ._recommended import RECOMMENDED, recommended
from ._report import EXACT, SMALL, TOO_SHORT, Counts, LayerReport, Report
from .setting import Setting, TokensparseWarning

torch = need("torch", "2.6", "tokensparse.transformers")
need("transformers", "5.0", "tokensparse.transformers")

from torch.compiler import is_compiling
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ._attached import (
    METHOD,
    AttentionLayer,
    attach_all,
    attention_modules,
    configs_of,
    environment,
    layer_of,
    layers,
    setting_of,
    stored_in,
)
from ._handed import Handed, hand_over, is_one_position, settle_all
from ._masks import check_spans, dense_mask, is_spans, mask, why_short
from ._stock import NAME, STOCK, check_stock, sdpa
from ._stock import stock as attend_by_stock

__all__ = ["Profile", "Report", "Setting", "configure", "profile", "report"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_serve_pairs = functools.cache(serve_pairs)
_log = logging.getLogger(__name__)


def _recommended(config: Any) -> Setting:
    found = recommended(config)
    if found is None:
        return Setting()
    _log.info("tokensparse: %s, measured on %s", found, found.model.get("name", "this model"))
    return found


def configure(
    model: Any,
    setting: Any = None,
    *,
    method: str | None = None,
    stock: str | None = None,
    **changes: Any,
) -> Setting:
    """Makes a model sparse, or exact again. The setting is stored in its config and saved with it.

    Args:
      model: a transformers model.
      setting: a Setting, a dict with its keys, or the path of a setting file; "recommended" = the one
        measured on a model with these numbers, else the built-in setting; None = what the model has, at
        first what the environment asks for or else the recommended one.
      method: who chooses, a name of `tokensparse.methods`.
      stock: an attention implementation of transformers ("sdpa", "flash_attention_2", ...) that attends
        in exact layers, to prompts too short for sparse ones, and to whatever is not served; "tokensparse"
        (at first) = this library wherever it can, sdpa elsewhere; None = as before.
      **changes: keys of Setting to change, e.g. coverage=0.05 or layers="none" for exact attention.

    Returns:
      The setting now in force. The report starts anew.

    Raises:
      InvalidArgument: a key that is not one, a value that breaks its rule, layers that the model does
        not have, or a setting that was made for another model.
    """
    check_stock(stock)
    if setting is not None and setting != RECOMMENDED:
        base = Setting.make(setting)
    elif setting == RECOMMENDED:
        base = _recommended(model.config)
    elif stored_in(model.config)[0] is not None or environment().is_sparse:
        base = setting_of(model.config)
    else:
        base = _recommended(model.config).changed(precision=environment().precision)
    made = base.changed(**changes)
    method = method or stored_in(model.config)[1] or methods.default()
    methods.chooser(method)
    cautions = [check_setting(made, model.config)]
    implementation = getattr(text_config(model.config), "_attn_implementation", NAME)
    if made.is_sparse and implementation != NAME:
        cautions.append(
            f'the model attends with "{implementation}" until '
            f'model.set_attn_implementation("{NAME}") is called'
        )
    for caution in filter(None, cautions):
        warnings.warn(caution, TokensparseWarning, stacklevel=2)
    modules = attention_modules(model)
    for config in configs_of(model, modules):
        setattr(config, NAME, made.asdict())
        setattr(config, METHOD, method)
        if stock is not None:
            setattr(config, STOCK, stock)
    attach_all(modules)
    return made


def report(model: Any, reset: bool = False) -> Report:
    """What happened in each attention layer since the last `configure`, `profile` or reset.

    Args:
      model: a model that ran with attn_implementation="tokensparse".
      reset: forget it afterwards.
    """
    settle_all()
    found = [layers[id(m)] for m in attention_modules(model) if id(m) in layers]
    called = [layer.report for layer in found if layer.report.served or layer.report.stock]
    answer = Report(called, sparse_layers(setting_of(model.config), model.config) if called else ())
    if reset:
        for layer in found:
            layer.report = LayerReport(layer.index, layer.report.named)
    return answer


def profile(
    model: Any, tokenizer: Any, text: str, *, delta: float = 0.5, max_tokens: int = 4096
) -> Profile:
    """Ranks the layers by how little they change the residual stream, and chooses the lower part.

    The drift of a layer is the mean over the tokens of |h_out - h_in| / |h_in| on a calibration
    text, with exact attention. Of the layers that attend to the whole prompt the lower `delta` share
    is chosen, never the model's first and last. A text of 4,096 tokens is enough.

    Args:
      model, tokenizer: of transformers.
      text: ordinary text, like the prompts to come.
      delta: share of the layers to choose, [0, 1].
      max_tokens: of the text that are used.

    Returns:
      Profile with `layers` and `drift`; `save(path)` writes a setting file.
    """
    tokens = tokenizer(text, return_tensors="pt").input_ids[:, :max_tokens]
    stored = [(config, getattr(config, NAME, None)) for config in configs_of(model)]
    for config, _ in stored:
        setattr(config, NAME, Setting(layers="none").asdict())
    try:
        return measure_drift(
            model,
            tokens.to(model.device),
            delta,
            whole_prompt_layers(model.config),
            numbers(model.config),
        )
    finally:
        for config, before in stored:
            setattr(config, NAME, before)


def _why_exact(layer: AttentionLayer, spans: list[list[int]], query: Any) -> str:
    """Why a call that could be served is the stock kernel's: where one is named, and on the CPU where
    it is as fast; empty when not."""
    if not layer.is_ours:
        return ""
    _, heads, q_len, dim = query.shape
    sizes = _sizes(spans, q_len)
    named = layer.report.named
    long = [size for size in sizes if named and layer.setting.is_long_enough(*size)]
    if not layer.hands_over:
        cpu = query.device.type == "cpu"
        small = cpu and not long and sum(map(math.prod, sizes)) < _serve_pairs("transformers")
        return SMALL if small else ""
    if long and layer.setting.when == "pays":
        with lease((query.device.type, query.device.index or 0), query) as context:
            long = [size for size in long if context.pays(*size, heads, dim)]
    return "" if long else TOO_SHORT if named else EXACT


def _sizes(spans: list[list[int]], q_len: int) -> list[tuple[int, int]]:
    """Query rows and keys of each sequence, padding left out."""
    found = []
    for first, past, offset in spans:
        high = min(past, offset + q_len)
        found.append((max(high - max(first, offset), 0), max(high - first, 0)))
    return found


def _reason(query: Any, key: Any, value: Any, kwargs: Any) -> str:
    """Why a call with a plain causal mask is not ours; empty when it is."""
    if kwargs.get("sliding_window") is not None:
        return "sliding window"
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            return name
    if kwargs["is_causal"] is False:
        return "not causal"
    if kwargs["dropout"]:
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
    if short := why_short(query.shape[2]):
        return short
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
    if is_compiling():
        if is_spans(attention_mask):  # made before the compiled part
            attention_mask = dense_mask(attention_mask, query, key)
        return sdpa(
            module, query, key, value, attention_mask,
            dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs,
        )  # fmt: skip
    layer = layers.get(id(module))
    handed = getattr(attention_mask, "tokensparse_handed", None)
    if not (
        handed is not None
        and layer is not None
        and layer.stored is handed.stored
        and layer.report.named in handed.why
        and query.shape == handed.shape
        and key.shape[2] == handed.keys
        and kwargs.get("sliding_window") is None
    ):
        kwargs.update(dropout=dropout, scaling=scaling, is_causal=is_causal)
        if layer is None or query.shape[2] != 1:
            found = _look_at(module, query, key, value, attention_mask, kwargs)
            if not isinstance(found, Handed):
                return found
            handed, layer = found, layers[id(module)]
        else:
            layer.report.stock["decode"] += 1
            if layer.stock_is_sdpa or attention_mask is not None:
                return sdpa(module, query, key, value, attention_mask, **kwargs)
            attend = ALL_ATTENTION_FUNCTIONS[layer.stock]
            if is_one_position(kwargs.get("position_ids"), attend):
                del kwargs["position_ids"]
            return attend(layer.like, query, key, value, None, **kwargs)
    handed.seen.append(layer)
    if handed.positions is not None and kwargs.get("position_ids") is handed.positions:
        del kwargs["position_ids"]
    kwargs.update(dropout=dropout, scaling=scaling, is_causal=is_causal)
    return handed.attend(layer.like or module, query, key, value, handed.mask, **kwargs)


def _look_at(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, kwargs: dict[str, Any]
) -> Handed | tuple[Any, None]:
    """A call that nothing is known of yet: what came of it, or what says that it is the stock kernel's,
    and those of the layers that follow in this forward pass are."""
    ours = is_spans(attention_mask)
    layer = layer_of(module, attention_mask if ours else None)
    if ours:
        spans = check_spans(attention_mask, query, key)
        reason = _reason(query, key, value, kwargs)
    else:
        reason = _foreign(query, attention_mask, kwargs)
    exact = "" if reason else _why_exact(layer, spans, query)
    if exact:
        counts = getattr(attention_mask, "tokensparse_counts", None)
        if counts is None:
            counts = attention_mask.tokensparse_counts = Counts.of(_sizes(spans, query.shape[2]))
        positions = kwargs.get("position_ids")
        handed = hand_over(layer, exact, counts, query, key, attention_mask, positions)
        if handed is not None:
            return handed
        layer.report.count_stock(counts, exact)
    else:
        try:
            if not reason:
                scaling = kwargs["scaling"]
                return _serve(layer, query, key, value, spans, attention_mask, scaling), None
        except Unsupported as error:  # a shape that this backend cannot serve
            reason = str(error)
        layer.report.stock[reason] += 1
    return attend_by_stock(layer.stock, module, query, key, value, attention_mask, **kwargs)


def _serve(
    layer: AttentionLayer,
    query: Any,
    key: Any,
    value: Any,
    spans: list[list[int]],
    attention_mask: Any,
    scaling: float | None,
) -> Any:
    batch, heads, q_len, dim = query.shape
    out = query.new_empty((batch, q_len, heads, dim))
    # All layers of a forward pass see the same mask.
    if not hasattr(attention_mask, "tokensparse_memory"):
        attention_mask.tokensparse_memory = [{} for _ in spans]
    for row, (first, past, offset) in enumerate(spans):
        low, high = max(first - offset, 0), max(past - offset, 0)
        out[row, :low] = 0  # padding
        out[row, high:] = 0
        if high <= low:
            continue
        keys = slice(first, offset + high)
        layer.attend(
            query[row, :, low:high].transpose(0, 1),
            key[row, :, keys].transpose(0, 1),
            value[row, :, keys].transpose(0, 1),
            out[row, low:high],
            scaling,
            attention_mask.tokensparse_memory[row],
        )
    return out


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
