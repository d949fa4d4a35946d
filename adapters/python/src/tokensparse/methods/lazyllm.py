# SPDX-License-Identifier: MIT
"""LazyLLM (arXiv 2407.14057): tokens drop out on the way up, and come back when they are wanted.

    from tokensparse.methods.lazyllm import LazyLLM, Schedule
    lazy = LazyLLM(model, Schedule(layers=(9, 18), keep=(0.7, 0.7)))
    answer = lazy.generate(input_ids, max_new_tokens=64)
    print(answer.tokens, answer.rows_share, answer.seconds_to_first_token)

After each layer of the schedule the last queries rank the tokens that are still alive, by the mean
over the heads of their softmax; the share `keep` of them goes on, the others skip the layers that
follow: their linear layers too, which attention alone cannot save. The hidden state of a token that
stops is put aside. Each later step ranks anew; a token it wants that has no keys in the next layers
goes on from where it stopped, so each (token, layer) is computed at most once. Tokens keep their
positions. Sets nest within a step: what a stage leaves out no later stage sees.

One sequence, greedy; decoders whose layers all attend to the whole prompt and whose forward pass is
embedding, layers, norm, head.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .. import ops
from .._library import InvalidArgument, Unsupported
from .._need import need
from ..setting import Setting
from ._decoders import check_answer_length, check_decoder, greedy, one_sequence, served_by

torch = need("torch", "2.6", "tokensparse.methods.lazyllm")
need("transformers", "5.0", "tokensparse.methods.lazyllm")

from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["Answer", "LazyLLM", "Reading", "Schedule"]

NAME = "tokensparse_lazyllm"


@dataclass(frozen=True)
class Schedule:
    """Where tokens drop out.

    Attributes:
      layers: tokens drop out after each of these, ascending.
      keep: share of the tokens then alive that goes on, (0, 1], one for each of `layers`.
      window: last queries that rank while the prompt is read. 1 is the paper's; 128 loses far less.
        They always go on.
      pool: width of the average pooling of the ranks, odd; 1 is the paper's.
    """

    layers: tuple[int, ...]
    keep: tuple[float, ...]
    window: int = 128
    pool: int = 1

    def check(self, num_layers: int) -> None:
        """Raises InvalidArgument where a rule is broken."""
        if len(self.layers) != len(self.keep):
            raise InvalidArgument(
                f"keep: must have one share for each of the {len(self.layers)} layers, "
                f"has {len(self.keep)}"
            )
        if list(self.layers) != sorted(set(self.layers)):
            raise InvalidArgument(f"layers: must be ascending and unique, are {self.layers}")
        for layer in self.layers:
            if not 0 <= layer < num_layers - 1:
                raise InvalidArgument(
                    f"layers: must lie in 0 .. {num_layers - 2}, the last layer has none after it; "
                    f"one is {layer}"
                )
        for share in self.keep:
            if not 0 < share <= 1:
                raise InvalidArgument(f"keep: must lie in (0, 1], one share is {share}")
        if self.window < 1:
            raise InvalidArgument(f"window: must be at least 1, is {self.window}")
        if self.pool < 1 or self.pool % 2 == 0:
            raise InvalidArgument(f"pool: must be odd and at least 1, is {self.pool}")


@dataclass(frozen=True)
class Answer:
    """What `generate` returns.

    Attributes:
      tokens: of the answer.
      seconds_to_first_token, seconds: of the first, and of all.
      rows: of each layer, the prompt's rows computed before the first token.
      rows_share: their share of all layers' rows.
      pairs_share: the query-key pairs of these rows, share of dense's.
      computed_share: share of all (token, layer) that were ever computed, answer included.
      alive: of each stage, tokens alive when the first token was made.
    """

    tokens: list[int]
    seconds_to_first_token: float
    seconds: float
    rows: list[int]
    rows_share: float
    pairs_share: float
    computed_share: float
    alive: list[int]


class _Layer:
    """Keys and values of one layer by position; a row is written when its token is computed."""

    def __init__(self) -> None:
        self.keys: Any = None
        self.values: Any = None

    def write(self, rows: Any, key: Any, value: Any, capacity: int) -> None:
        if self.keys is None:
            self.keys = key.new_zeros((key.shape[1], capacity, key.shape[3]))
            self.values = torch.zeros_like(self.keys)
        self.keys[:, rows] = key[0]
        self.values[:, rows] = value[0]

    def read(self, alive: Any) -> tuple[Any, Any]:
        return self.keys[None, :, alive], self.values[None, :, alive]


class _Cache:
    """All that is remembered of a sequence."""

    def __init__(self, num_layers: int, schedule: Schedule, capacity: int, device: Any) -> None:
        self.capacity = capacity
        self.length = 0
        self.layers = [_Layer() for _ in range(num_layers)]
        # Stage s is the layers behind the s-th of the schedule: which tokens have keys there, and the
        # hidden state in which each token that reached the stage's door stands there.
        stages = len(schedule.layers) + 1
        self.computed = torch.zeros((stages, capacity), dtype=torch.bool, device=device)
        self.door: list[Any] = [None] * stages
        ends = (*schedule.layers, num_layers - 1)
        begins = (0, *(layer + 1 for layer in schedule.layers))
        self.stages = [range(b, e + 1) for b, e in zip(begins, ends)]


class _Step:
    """One forward pass over new tokens; transformers' attention takes it for its cache."""

    def __init__(self, model: Any, schedule: Schedule, cache: _Cache) -> None:
        self._model, self._schedule, self._cache = model, schedule, cache
        self._sets: Any = None
        self.alive_counts: list[int] = []
        self.rows: list[int] = []

    def run(self, ids: Any) -> Any:
        """Logits of the last of the new tokens [1, n]."""
        cache, body = self._cache, self._model.model
        begin, cache.length = cache.length, cache.length + ids.shape[1]
        self._new = ids.shape[1]
        self._alive = torch.arange(cache.length, device=ids.device)
        rows, hidden = self._alive[begin:], body.embed_tokens(ids)
        for stage, layers in enumerate(cache.stages):
            if stage:
                self._alive = self._alive[self._sets]
                rows, hidden = self._enter(stage, rows, hidden)
            self._aim(rows)
            turn = body.rotary_emb(hidden, rows[None])
            for layer in layers:
                hidden = body.layers[layer](
                    hidden,
                    attention_mask=None,
                    position_ids=rows[None],
                    past_key_values=self,
                    use_cache=True,
                    position_embeddings=turn,
                    lazy_step=self,
                )
                self.rows.append(len(rows))
            cache.computed[stage, rows] = True
            self.alive_counts.append(len(self._alive))
        return self._model.lm_head(body.norm(hidden[:, -1:]))[0, -1]

    def _enter(self, stage: int, rows: Any, hidden: Any) -> tuple[Any, Any]:
        """All that arrive wait at the stage's door; whoever is wanted and not yet in goes in."""
        cache = self._cache
        if cache.door[stage] is None:
            cache.door[stage] = hidden.new_zeros((cache.capacity, hidden.shape[2]))
        cache.door[stage][rows] = hidden[0]
        wanted = self._alive[~cache.computed[stage, self._alive]]
        return wanted, cache.door[stage][wanted][None]

    def _aim(self, rows: Any) -> None:
        """What the stage's attention calls look at."""
        self._rows = rows
        tail = self._alive[len(self._alive) - len(rows) :]
        self._plain = bool(torch.equal(tail, rows))  # no row came back: bottom-right causal
        self._mask = None
        if not self._plain or 1 < len(rows) < 64:
            self._mask = (self._alive[None] <= rows[:, None])[None, None]

    def update(self, key: Any, value: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Called by the model's attention: writes the new rows, returns the rows alive."""
        here = self._cache.layers[layer]
        here.write(self._rows, key, value, self._cache.capacity)
        return here.read(self._alive)

    def attend(self, module: Any, query: Any, key: Any, value: Any, scaling: Any) -> Any:
        """[1, rows, heads, dim]."""
        if module.layer_idx in self._schedule.layers:
            self._vote(self._schedule.layers.index(module.layer_idx), query, key, scaling)
        if self._mask is not None or query.shape[2] == 1:
            return sdpa_attention_forward(module, query, key, value, self._mask, scaling=scaling)[0]
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        precision = Setting(layers="none").products(str(q.dtype))
        return ops.prefill(q, k, v, coverage=0.0, scale=scaling, precision=precision)[None]

    def _vote(self, stage: int, query: Any, key: Any, scaling: Any) -> None:
        """Of the tokens alive, which go on."""
        # Rows that came back are older than the new ones, which stand last.
        window = min(self._schedule.window, self._new)
        q = query[0, :, -window:].transpose(0, 1)
        k = key[0].transpose(0, 1)
        alive = k.shape[0]
        if alive <= window or self._schedule.keep[stage] == 1:
            self._sets = torch.arange(alive, device=k.device)
            return
        precision = Setting(layers="none").products(str(q.dtype))
        scores = ops.score(
            q, k, window=window, pool=self._schedule.pool, scale=scaling, precision=precision
        )
        chosen = ops.select(
            scores,
            window,
            alive,
            num_kv_heads=k.shape[1],
            keep=self._schedule.keep[stage],
            window=window,
            min_tokens=0,
            share="layer",
        )
        self._sets = chosen.tokens().long()


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any):
    step = kwargs.get("lazy_step")
    if step is None:
        raise Unsupported(f"{NAME}: is for LazyLLM.generate alone; set another attention")
    return step.attend(module, query, key, value, kwargs.get("scaling")), None


class LazyLLM:
    """A model of transformers that reads prompts by a schedule.

    Raises:
      Unsupported: a family, or a kind of layer, that this does not follow.
      InvalidArgument: a schedule that breaks a rule.
    """

    def __init__(self, model: Any, schedule: Schedule) -> None:
        check_decoder(model)
        schedule.check(model.config.num_hidden_layers)
        self._model, self._schedule = model, schedule

    @torch.no_grad()
    def generate(self, input_ids: Any, max_new_tokens: int = 64) -> Answer:
        """Greedy.

        Args:
          input_ids: [1, tokens] or [tokens] on the model's device.
          max_new_tokens: of the answer, >= 1; it ends earlier at the model's end of text.
        """
        check_answer_length(max_new_tokens)
        began = time.perf_counter()
        reading = self.read(input_ids, max_new_tokens)
        tokens = greedy(self._model, reading.logits, reading.push, max_new_tokens)
        return Answer(
            tokens=tokens,
            seconds_to_first_token=reading.seconds,
            seconds=time.perf_counter() - began,
            rows=reading.rows,
            rows_share=reading.rows_share,
            pairs_share=reading.pairs_share,
            computed_share=reading.computed_share,
            alive=reading.alive,
        )

    @torch.no_grad()
    def read(self, input_ids: Any, room: int) -> Reading:
        """Reads a prompt.

        Args:
          input_ids: [1, tokens] or [tokens] on the model's device.
          room: tokens that may be pushed behind it.
        """
        return Reading(self._model, self._schedule, one_sequence(input_ids), room)


class Reading:
    """A prompt that was read, and what was pushed behind it since.

    Attributes:
      logits: of the last token.
      seconds: that the prompt took.
      rows, rows_share, pairs_share, alive: of the prompt, see Answer.
    """

    def __init__(self, model: Any, schedule: Schedule, ids: Any, room: int) -> None:
        self._model, self._schedule, self._device = model, schedule, ids.device
        prompt, num_layers = ids.shape[1], model.config.num_hidden_layers
        self._cache = _Cache(num_layers, schedule, prompt + room, ids.device)
        began = time.perf_counter()
        step = self._step(ids)
        self.logits.argmax().item()  # waits for the device
        self.seconds = time.perf_counter() - began
        self.rows, self.alive = step.rows, step.alive_counts
        self.rows_share = sum(self.rows) / (prompt * num_layers)
        pairs = sum(rows * (rows + 1) for rows in self.rows)
        self.pairs_share = pairs / (prompt * (prompt + 1) * num_layers)

    def _step(self, ids: Any) -> _Step:
        step = _Step(self._model, self._schedule, self._cache)
        with served_by(self._model, NAME):
            self.logits = step.run(ids)
        return step

    @torch.no_grad()
    def push(self, token: int) -> Any:
        """Logits behind one more token."""
        if self._cache.length == self._cache.capacity:
            raise InvalidArgument("room: must hold the tokens that are pushed, is used up")
        self._step(torch.tensor([[token]], device=self._device))
        return self.logits

    @property
    def computed_share(self) -> float:
        """Share of all (token, layer) that were computed so far."""
        stages = zip(self._cache.computed, self._cache.stages)
        computed = sum(int(rows.sum()) * len(layers) for rows, layers in stages)
        return computed / (self._cache.length * self._model.config.num_hidden_layers)


AttentionInterface.register(NAME, _attention)
