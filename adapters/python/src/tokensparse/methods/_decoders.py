# SPDX-License-Identifier: MIT
"""What the methods share that run a decoder of transformers layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .._library import InvalidArgument, Unsupported
from .._model import kinds_of_layers

# Models whose forward pass is embedding, layers, norm, head.
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def check_decoder(model: Any) -> None:
    """Raises Unsupported for a family, or a kind of layer, that running layer by layer does not follow."""
    config = model.config
    if config.model_type not in _FAMILIES:
        raise Unsupported(
            f"model: family must be one of {', '.join(_FAMILIES)}, is {config.model_type}"
        )
    for layer, kind in enumerate(kinds_of_layers(config, range(config.num_hidden_layers))):
        if kind:
            raise Unsupported(
                f"model: all layers must attend to the whole prompt, {layer} is {kind}"
            )


def one_sequence(input_ids: Any) -> Any:
    """As [1, tokens], or raises InvalidArgument."""
    ids = input_ids if input_ids.dim() == 2 else input_ids[None]
    if ids.shape[0] != 1 or ids.shape[1] < 1:
        raise InvalidArgument(f"input_ids: must be [1, tokens], is {list(ids.shape)}")
    return ids


def check_answer_length(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise InvalidArgument(f"max_new_tokens: must be at least 1, is {max_new_tokens}")


@contextlib.contextmanager
def served_by(model: Any, name: str) -> Iterator[None]:
    """Attention of a registered name, and then again the one before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def run_layers(
    model: Any, ids: Any, positions: Any, cache: Any, attention: str, **more: Any
) -> Any:
    """Hidden states [1, n, hidden] behind the last layer of tokens [n] at their positions. `more` goes to
    the attention, which is the registered one of that name and gets no mask."""
    body = model.model
    hidden, positions = body.embed_tokens(ids[None]), positions[None]
    turn = body.rotary_emb(hidden, positions)
    with served_by(model, attention):
        for layer in body.layers:
            hidden = layer(
                hidden, attention_mask=None, position_ids=positions, past_key_values=cache,
                use_cache=cache is not None, position_embeddings=turn, **more,
            )  # fmt: skip
    return hidden


def greedy(model: Any, logits: Any, push: Callable[[int], Any], limit: int) -> list[int]:
    """The likeliest tokens from `logits` on, to the model's end of text or `limit`; push(token) gives
    the logits behind one more."""
    stops = model.generation_config.eos_token_id
    stops = set(stops) if isinstance(stops, list) else {stops}
    tokens = [int(logits.argmax())]
    while len(tokens) < limit and tokens[-1] not in stops:
        tokens.append(int(push(tokens[-1]).argmax()))
    return tokens
