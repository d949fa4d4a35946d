# SPDX-License-Identifier: MIT
"""ADORE (arXiv 2407.02328): a cache of fixed size, and a small network that says who stays in it.

    from tokensparse.methods import adore
    controller = adore.Controller.load("controller.safetensors")    # adore_training makes one
    small = adore.Adore(model, controller, cache=2048, rebuild=16)
    answer = small.generate(input_ids, max_new_tokens=256)

The prompt is read exactly. Then the cache keeps the `cache` tokens that the controller ranks highest,
for all layers and heads the same. Each later step ranks anew: the `rebuild` best of the released
tokens go through the layers again beside the new one, at their own positions, and the lowest of all
that are then there are released. A rebuilt token sees only what the cache holds, as in the paper; its
keys are therefore near those it had, not equal to them, but in the first layer.

The controller reads the tokens' embeddings alone, through a GRU. The paper trains the model along with
it; here the model stays as it is.

One sequence, greedy; decoders whose layers all attend to the whole prompt.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from .._library import InvalidArgument
from .._model import numbers
from .._need import need
from ._decoders import check_answer_length, check_decoder, greedy, one_sequence, run_layers

torch = need("torch", "2.6", "tokensparse.methods.adore")
need("transformers", "5.0", "tokensparse.methods.adore")

from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["Adore", "Answer", "Controller", "Reading"]

NAME = "tokensparse_adore"
FORMAT = "tokensparse controller 1"


def _numbers(model: Any) -> dict[str, int]:
    config = model.config
    return {**numbers(config), "hidden_size": config.hidden_size, "vocab_size": config.vocab_size}


def _mark(model: Any) -> Any:
    """Some of the embedding's values: two models of one shape differ in them."""
    table = model.get_input_embeddings().weight
    rows = torch.linspace(0, table.shape[0] - 1, 32, device=table.device).long()
    return table.detach()[rows, :8].float().cpu().contiguous()


class Controller(torch.nn.Module):
    """Ranks the tokens of a sequence by how much they will be looked at.

    What is asked for at a token and what a token offers are read from the GRU's state there and from
    the embeddings: of the token that asks, of the one that offers and of the one before it. The first
    and the last begin as the same projection, so that what once followed this very token ranks high
    from the start.

    Args:
      made_for: the model's numbers, with hidden_size and vocab_size.
      mark: values of its embedding that it is known by.
      state: of the GRU.
      rank: of the product between what is asked and what is offered.
    """

    def __init__(self, made_for: dict[str, int], mark: Any, state: int = 128, rank: int = 64) -> None:
        super().__init__()
        self.made_for, self._sizes = made_for, (state, rank)
        self.register_buffer("mark", mark)
        hidden = made_for["hidden_size"]
        self.norm = torch.nn.LayerNorm(hidden)
        self.gru = torch.nn.GRU(hidden, state, batch_first=True)
        self.ask = torch.nn.Linear(state, rank)
        self.offer = torch.nn.Linear(state, rank + 1)  # the last: whatever is asked
        self.asking = torch.nn.Linear(hidden, rank, bias=False)
        self.offering = torch.nn.Linear(hidden, rank, bias=False)
        self.followed = torch.nn.Linear(hidden, rank, bias=False)
        self.followed.load_state_dict(self.asking.state_dict())
        self.distance = torch.nn.Parameter(torch.full((1,), 0.5))

    @staticmethod
    def of(model: Any, **sizes: int) -> Controller:
        """An untrained one for a model, on its device."""
        return Controller(_numbers(model), _mark(model), **sizes).to(model.device)

    def read(self, embeddings: Any, memory: Any = None) -> tuple[Any, Any, Any]:
        """What is asked [b, n, rank] and offered [b, n, rank + 1] at tokens [b, n, hidden], and the memory
        that the tokens behind them are read with."""
        x = self.norm(embeddings.float())
        state, last = memory or (None, torch.zeros_like(x[:, :1]))
        states, state = self.gru(x, state)
        before = torch.cat([last, x[:, :-1]], 1)
        offers = self.offer(states)
        offers = torch.cat(
            [offers[..., :-1] + self.offering(x) + self.followed(before), offers[..., -1:]], -1
        )
        return self.ask(states) + self.asking(x), offers, (state, x[:, -1:])

    def ranks(self, asks: Any, positions: Any, offers: Any) -> Any:
        """Of the tokens before and at each of `positions` [b, n, tokens]; what looks at them, as logits.

        Args:
          asks, positions: [b, n, rank], [b, n].
          offers: [b, tokens, rank + 1].
        """
        apart = positions[..., None] - torch.arange(offers.shape[1], device=offers.device)
        far = torch.log1p(apart.clamp(min=0).float())
        fit = asks @ offers[..., :-1].mT * self._sizes[1] ** -0.5
        return fit + offers[:, None, :, -1] - self.distance * far

    def check(self, model: Any) -> None:
        """Raises InvalidArgument where it was trained for another model."""
        found = _numbers(model)
        if self.made_for != found:
            raise InvalidArgument(
                f"controller: must be the model's own, was made for {self.made_for}, this is {found}"
            )
        if not torch.allclose(self.mark.cpu(), _mark(model), rtol=0.02, atol=1e-4):
            raise InvalidArgument(
                "controller: must be the model's own, was made for one of the same shape with other "
                "embeddings"
            )

    def save(self, path: Any) -> None:
        about = {"format": FORMAT, "model": json.dumps(self.made_for), "sizes": json.dumps(self._sizes)}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, str(path), metadata=about)

    @staticmethod
    def load(path: Any) -> Controller:
        """Raises InvalidArgument where the file is not one."""
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except Exception as error:  # OSError or the format's own
            raise InvalidArgument(f"controller {path}: cannot be read: {error}") from None
        if about.get("format") != FORMAT:
            raise InvalidArgument(
                f'controller {path}: format must be "{FORMAT}", is {about.get("format")!r}'
            )
        try:
            state, rank = json.loads(about["sizes"])
            made = Controller(json.loads(about["model"]), tensors["mark"], state, rank)
            made.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InvalidArgument(f"controller {path}: {error}") from None
        return made.eval()


@dataclass(frozen=True)
class Answer:
    """What `generate` returns.

    Attributes:
      tokens: of the answer.
      seconds_to_first_token: the prompt, the controller's reading and the first release included.
      seconds: of all.
      released: tokens that the cache lacked at the end.
      rows: that went through the layers in an average step, the new token and the rebuilt ones.
      cache_bytes: keys and values of the fixed cache.
    """

    tokens: list[int]
    seconds_to_first_token: float
    seconds: float
    released: int
    rows: float
    cache_bytes: int


class Adore:
    """A model of transformers that decodes on a cache of fixed size.

    Args:
      model, controller: the latter trained for the former.
      cache: tokens that stay after each step.
      rebuild: released tokens that are computed anew in each step, at most.
      sink, recent: first and last tokens that always stay.

    Raises:
      Unsupported: a family, or a kind of layer, that this does not follow.
      InvalidArgument: another model's controller, or a cache too small.
    """

    def __init__(
        self,
        model: Any,
        controller: Controller,
        *,
        cache: int = 2048,
        rebuild: int = 16,
        sink: int = 4,
        recent: int = 64,
    ) -> None:
        check_decoder(model)
        controller.check(model)
        if rebuild < 0 or sink < 0 or recent < 1:
            raise InvalidArgument(
                f"rebuild and sink: must be at least 0, recent at least 1, are {rebuild}, {sink}, "
                f"{recent}"
            )
        if cache < sink + recent:
            raise InvalidArgument(
                f"cache: must hold the {sink} first and {recent} last tokens, is {cache}"
            )
        self.model, self.controller = model, controller.to(model.device)
        self.cache, self.rebuild, self.sink, self.recent = cache, rebuild, sink, recent

    @torch.no_grad()
    def generate(self, input_ids: Any, max_new_tokens: int = 64) -> Answer:
        """Greedy.

        Args:
          input_ids: [1, tokens] or [tokens] on the model's device.
          max_new_tokens: of the answer, >= 1; it ends earlier at the model's end of text.
        """
        check_answer_length(max_new_tokens)
        began = time.perf_counter()
        reading = self.read(input_ids)
        tokens = greedy(self.model, reading.logits, reading.push, max_new_tokens)
        steps = len(tokens) - 1
        return Answer(
            tokens=tokens,
            seconds_to_first_token=reading.seconds,
            seconds=time.perf_counter() - began,
            released=reading.length - reading.count,
            rows=reading.rows / steps if steps else 1.0,
            cache_bytes=reading.cache_bytes,
        )

    @torch.no_grad()
    def read(self, input_ids: Any) -> Reading:
        """Reads a prompt [1, tokens] or [tokens], exactly, and releases what does not fit."""
        return Reading(self, one_sequence(input_ids))


class Reading:
    """A prompt that was read, and what was pushed behind it since.

    Attributes:
      logits: of the last token.
      seconds: that the prompt took, controller and first release included.
      length, count: tokens of the sequence, and of it in the cache.
      positions: of the tokens in the cache.
      rows: that went through the layers since the prompt.
    """

    def __init__(self, owner: Adore, ids: Any) -> None:
        self._owner, self._model = owner, owner.model
        began = time.perf_counter()
        cache = DynamicCache()
        out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.logits = out.logits[0, -1]
        self.length, self.rows = ids.shape[1], 0
        self._ids = ids[0]
        embeddings = self._model.get_input_embeddings()(ids)
        asks, self._offers, self._memory = owner.controller.read(embeddings)
        everything = torch.arange(self.length, device=ids.device)
        self.positions = everything
        if self.length > owner.cache:
            ranks = owner.controller.ranks(asks[:, -1:], everything[None, -1:], self._offers)[0, 0]
            self.positions = self._best(ranks, everything).sort().values
        self._fill(cache)
        self.logits.argmax().item()  # waits for the device
        self.seconds = time.perf_counter() - began

    @property
    def count(self) -> int:
        return len(self.positions)

    @property
    def cache_bytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def _fill(self, cache: Any) -> None:
        layers, at, size = cache.layers, self.positions, self._owner.cache + self._owner.rebuild + 1
        heads, dim = layers[0].keys.shape[1], layers[0].keys.shape[3]
        self._keys = layers[0].keys.new_zeros((len(layers), heads, size, dim))
        self._values = torch.zeros_like(self._keys)
        for layer, held in enumerate(layers):
            self._keys[layer, :, : len(at)] = held.keys[0][:, at]
            self._values[layer, :, : len(at)] = held.values[0][:, at]
            held.keys = held.values = None

    def _best(self, ranks: Any, positions: Any) -> Any:
        """Which of `positions` stay, as many as the cache holds."""
        owner, ranks = self._owner, ranks[positions]
        always = (positions < owner.sink) | (positions >= self.length - owner.recent)
        ranks = ranks.masked_fill(always, float("inf"))
        return positions[ranks.topk(owner.cache).indices]

    @torch.no_grad()
    def push(self, token: int) -> Any:
        """Logits behind one more token."""
        owner, body, now = self._owner, self._model.model, self.length
        self._ids = torch.cat([self._ids, self._ids.new_tensor([token])])
        self.length += 1
        at = torch.tensor([now], device=self._ids.device)
        embeddings = body.embed_tokens(self._ids[None, -1:])
        asks, offers, self._memory = owner.controller.read(embeddings, self._memory)
        self._offers = torch.cat([self._offers, offers], 1)
        ranks = owner.controller.ranks(asks, at[None], self._offers)[0, 0]
        rows = torch.cat([self._wanted(ranks[:now]), at])
        self._rows, self.positions = rows, torch.cat([self.positions, rows])
        self._mask = (self.positions[None] <= rows[:, None])[None, None] if len(rows) > 1 else None
        hidden = run_layers(self._model, self._ids[rows], rows, self, NAME, adore_mask=self._mask)
        self.rows += len(rows)
        if self.count > owner.cache:
            self._release(ranks)
        self.logits = self._model.lm_head(body.norm(hidden[:, -1:]))[0, -1]
        return self.logits

    def _wanted(self, ranks: Any) -> Any:
        """The released tokens that are rebuilt, ascending."""
        count = min(self._owner.rebuild, len(ranks) - self.count)
        if count == 0:
            return self.positions[:0]
        held = torch.zeros(len(ranks), dtype=torch.bool, device=ranks.device)
        held[self.positions] = True
        return ranks.masked_fill(held, float("-inf")).topk(count).indices.sort().values

    def update(self, key: Any, value: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Called by the model's attention: writes the new rows behind the others, returns all."""
        end = self.count
        self._keys[layer, :, end - len(self._rows) : end] = key[0]
        self._values[layer, :, end - len(self._rows) : end] = value[0]
        return self._keys[layer, None, :, :end], self._values[layer, None, :, :end]

    def _release(self, ranks: Any) -> None:
        """The cells of the lowest take what stands behind the cache's end and stays."""
        size = self._owner.cache
        stays = torch.isin(self.positions, self._best(ranks, self.positions))
        free = (~stays[:size]).nonzero()[:, 0]
        moved = stays[size:].nonzero()[:, 0] + size
        self._keys[:, :, free] = self._keys[:, :, moved]
        self._values[:, :, free] = self._values[:, :, moved]
        self.positions[free] = self.positions[moved]
        self.positions = self.positions[:size]


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any):
    return sdpa_attention_forward(
        module, query, key, value, kwargs["adore_mask"], scaling=kwargs.get("scaling")
    )


AttentionInterface.register(NAME, _attention)
