# SPDX-License-Identifier: MIT
"""Trains ADORE's controller on a model's own attention.

    controller = adore_training.train(model, samples)      # samples: token ids, [tokens] each
    controller.save("controller.safetensors")

The model reads each sample once, exactly. Of some of its queries, the last ones and others drawn at
random, the attention to each token is averaged over all layers and heads; what falls to the first and
the last tokens, which a cache keeps anyway, is left out. The controller's ranks, as logits, learn the
shares of the rest (cross-entropy). The paper learns membership in the top K instead; trained like that
for as long on 512 prompts a controller held no more of the attention than the last tokens do (Qwen2.5-
Coder 1.5B, one H200, 2026-11-27). The model itself is not changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .._library import InvalidArgument
from .._need import need
from . import _decoders
from .adore import Controller

torch = need("torch", "2.6", "tokensparse.methods.adore_training")
need("transformers", "5.0", "tokensparse.methods.adore_training")

from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["Held", "held", "train"]

NAME = "tokensparse_adore_training"
SINK, RECENT = 4, 64  # tokens that are always kept: nothing is to be learned of them


class _Watch:
    """The attention of some queries of a model [queries, tokens], mean over layers and heads."""

    def __init__(self, model: Any, ids: Any, at: Any) -> None:
        self._at, self._sum = at, 0.0
        positions = torch.arange(len(ids), device=ids.device)
        with torch.no_grad():
            _decoders.run_layers(model, ids, positions, None, NAME, adore_watch=self)
        self.mean = self._sum / model.config.num_hidden_layers

    def see(self, query: Any, key: Any, scaling: float) -> None:
        groups = query.shape[1] // key.shape[1]
        q = query[0, :, self._at].unflatten(0, (-1, groups)).float()
        logits = torch.einsum("hgqd,hkd->hgqk", q * scaling, key[0].float())
        future = torch.arange(key.shape[2], device=key.device)[None] > self._at[:, None]
        self._sum = self._sum + logits.masked_fill_(future, float("-inf")).softmax(-1).mean((0, 1))


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any):
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    kwargs["adore_watch"].see(query, key, scaling)
    return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)


AttentionInterface.register(NAME, _attention)


def _queries(length: int, count: int, generator: Any) -> Any:
    """Half of them the last ones, where answers are made, half anywhere behind the first eighth."""
    last = torch.arange(length - count // 2, length)
    drawn = torch.randint(length // 8, length - count // 2, (count - count // 2,), generator=generator)
    return torch.cat([drawn.sort().values, last])


@dataclass(frozen=True)
class _Example:
    ids: Any  # [tokens]
    at: Any  # [queries]
    attention: Any  # [queries, tokens] f16


def _example(model: Any, sample: Any, queries: int, generator: Any) -> _Example:
    ids = sample.to(model.device)
    at = _queries(len(ids), queries, generator).to(ids.device)
    return _Example(ids, at, _Watch(model, ids, at).mean.half())


def _loss(model: Any, controller: Controller, batch: Sequence[_Example]) -> Any:
    """Examples of unequal length are padded behind their ends, which no query sees."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([example.ids for example in batch], batch_first=True)
    at = torch.stack([example.at for example in batch])
    attention = pad([example.attention.T for example in batch], batch_first=True).mT.float()
    asks, offers, _ = controller.read(model.get_input_embeddings()(ids).detach())
    asks = asks.gather(1, at[..., None].expand(-1, -1, asks.shape[2]))
    ranks = controller.ranks(asks, at, offers)
    token = torch.arange(ids.shape[1], device=ids.device)
    learned = (token >= SINK) & (token <= at[..., None] - RECENT)
    wanted = attention * learned
    shares = ranks.masked_fill(~learned, float("-inf")).log_softmax(-1).masked_fill(~learned, 0)
    return -(wanted * shares).sum() / wanted.sum()


def train(
    model: Any,
    samples: Sequence[Any],
    *,
    queries: int = 128,
    epochs: int = 8,
    batch: int = 8,
    rate: float = 2e-3,
    seed: int = 1,
    on_step: Callable[[int, float], None] | None = None,
    **sizes: int,
) -> Controller:
    """A controller for a model.

    Args:
      model: of transformers, on the device to train on; it is not changed.
      samples: token ids of a text each [tokens], like the prompts and answers to come.
      queries: of each sample, whose attention is learned from.
      epochs, batch: how often each sample is learned from, and how many at once.
      rate: of Adam, falling to nothing by a half cosine.
      seed: of weights and draws.
      on_step: told the number of each step and its loss.
      **sizes: state and rank of the Controller.

    Raises:
      Unsupported, InvalidArgument: a model that is not followed, samples that are too short.
    """
    _decoders.check_decoder(model)
    least = max(2 * queries, 8 * (SINK + RECENT))
    for sample in samples:
        if len(sample) < least:
            raise InvalidArgument(
                f"samples: must have at least {least} tokens, one has {len(sample)}"
            )
    if not samples:
        raise InvalidArgument("samples: must be one or more, are none")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controller = Controller.of(model, **sizes).train()
    optimizer = torch.optim.Adam(controller.parameters(), lr=rate)
    examples = [_example(model, sample, queries, generator) for sample in samples]
    steps = epochs * math.ceil(len(examples) / batch)
    slow = lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, slow)
    done = 0
    for _ in range(epochs):
        order = torch.randperm(len(examples), generator=generator).tolist()
        for first in range(0, len(order), batch):
            loss = _loss(model, controller, [examples[i] for i in order[first : first + batch]])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(controller.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if on_step:
                on_step(done, loss.item())
    return controller.eval()


@dataclass(frozen=True)
class Held:
    """The share of the attention that a set of tokens holds, mean over queries and samples.

    Attributes:
      controller, best, last: sets of the same size by the controller, first and last tokens among
        them as in a cache; by the attention itself; and of the first four and the last tokens.
    """

    controller: float
    best: float
    last: float


@torch.no_grad()
def held(model: Any, controller: Controller, samples: Sequence[Any], tokens: int, queries: int = 64) -> Held:
    """How much of the last queries' attention a cache of `tokens` holds."""
    sums = torch.zeros(3)
    for sample in samples:
        ids = sample.to(model.device)
        at = torch.arange(len(ids) - queries, len(ids), device=ids.device)
        attention = _Watch(model, ids, at).mean
        asks, offers, _ = controller.read(model.get_input_embeddings()(ids[None]))
        everything = torch.arange(len(ids), device=ids.device)[None]
        last = everything.float().expand(queries, -1).masked_fill(everything < SINK, float("inf"))
        always = (everything < SINK) | (everything > at[:, None] - RECENT)
        ranks = controller.ranks(asks[:, at], at[None], offers)[0].masked_fill(always, float("inf"))
        by = (ranks, attention, last)
        for place, order in enumerate(by):
            order = order.masked_fill(everything > at[:, None], float("-inf"))
            chosen = order.topk(min(tokens, len(ids)), -1).indices
            sums[place] += attention.gather(1, chosen).sum(-1).mean().cpu()
    return Held(*(sums / len(samples)).tolist())
