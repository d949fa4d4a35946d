# SPDX-License-Identifier: MIT
"""STS (arXiv 2605.15508): a small model reads the prompt first, and its attention chooses the tokens.

    from tokensparse.methods import sts
    heads = sts.calibrate(target, draft, calibration_ids)      # once; heads.save("map.json")
    pair = sts.Sts(target, draft, heads, coverage=0.1)
    answer = pair.generate(input_ids, max_new_tokens=64)

The draft attends to everything. The last `window` queries of the draft heads that a KV head of the
target is mapped to vote (the mean of their votes, as within a KV head in TSA), and the target's layer
attends to the chosen tokens. Nothing of the target's own q and k is scored. Decoding is exact, or with
`decode_keep` reads in each step the keys alone that the draft's next look chooses. The head map is made on a
calibration text: to each KV head of the target the draft heads whose most looked-at tokens overlap
most with its own. Both models must read the same tokens.

The method has the name "sts" in `configure` and the report while an `Sts` lives; the newest one counts.
"""

from __future__ import annotations

import json
import pathlib
import time
from dataclasses import asdict, dataclass
from typing import Any

from .. import methods, ops
from .._library import InvalidArgument
from .._model import numbers
from .._need import need
from . import Choice, Dense, State, tsa
from ._decoders import check_answer_length, greedy

torch = need("torch", "2.6", "tokensparse.methods.sts")
need("transformers", "5.0", "tokensparse.methods.sts")

from .. import _attached
from .. import transformers as adapter
from . import sts_decoding

__all__ = ["Answer", "HeadMap", "Sts", "calibrate"]

FORMAT = "tokensparse head map 1"


@dataclass(frozen=True)
class HeadMap:
    """Which draft heads vote for each KV head of the target.

    Attributes:
      target, draft: the models' num_layers, num_heads, num_kv_heads, head_dim.
      heads: [target layer][KV head] = the (layer, head) of the draft, one or more.
      overlap: [target layer][KV head] = Jaccard index of the first of them on the calibration text.
      top, window, tokens: tokens compared a head, queries that voted, length of the text.
    """

    target: dict[str, int]
    draft: dict[str, int]
    heads: list[list[list[tuple[int, int]]]]
    overlap: list[list[float]]
    top: int
    window: int
    tokens: int

    def save(self, path: Any) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        pathlib.Path(path).write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Any) -> HeadMap:
        """Raises InvalidArgument where the file is not one."""
        try:
            found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"head map {path}: cannot be read: {error}") from None
        named = found.pop("format", None) if isinstance(found, dict) else None
        if named != FORMAT:
            raise InvalidArgument(f'head map {path}: format must be "{FORMAT}", is {named!r}')
        try:
            made = HeadMap(**found)
            pairs = [[[(int(a), int(b)) for a, b in s] for s in layer] for layer in made.heads]
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"head map {path}: {error}") from None
        return HeadMap(**{**asdict(made), "heads": pairs})

    def check(self, target: Any, draft: Any) -> None:
        """Raises InvalidArgument where the map was made for other models, or names a head they lack."""
        for what, model in (("target", target), ("draft", draft)):
            made_for, found = getattr(self, what), numbers(model.config)
            if made_for != found:
                raise InvalidArgument(f"head map: {what} must be the one it was made for, with {made_for}, has {found}")
        shape = self.target["num_layers"], self.target["num_kv_heads"]
        if (len(self.heads), *{len(layer) for layer in self.heads}) != shape:
            raise InvalidArgument(f"head map: heads must be given for {shape[0]} layers of {shape[1]}")
        layers, heads = self.draft["num_layers"], self.draft["num_heads"]
        for sets in self.heads:
            for pairs in sets:
                if not pairs or any(not (0 <= a < layers and 0 <= b < heads) for a, b in pairs):
                    raise InvalidArgument(
                        f"head map: must name one or more heads of {layers} layers of {heads}, "
                        f"names {pairs}"
                    )


class _Votes:
    """Records how much the last queries of each head look at each token, in every layer."""

    def __init__(self, window: int, pool: int) -> None:
        self._window, self._pool = window, pool
        self.scores: dict[int, Any] = {}  # of a layer [P, Hq]
        self.length = 0

    def choose(self, layer: int, q: Any, k: Any, state: State) -> Choice:
        if state.q_offsets is None and q.shape[0] == k.shape[0]:
            self.length = k.shape[0]
            self.scores[layer] = ops.score(
                q, k, window=self._window, pool=self._pool, scale=state.scale,
                precision=state.precision,
            )  # fmt: skip
        return Dense("its votes are recorded")

    @staticmethod
    def read(model: Any, ids: Any, window: int, pool: int, cache: Any = None) -> _Votes:
        """Runs a prompt through a model, exactly; its keys and values go to `cache`."""
        votes = _Votes(window, pool)
        methods.register("sts draft", votes.choose)
        before = model.config._attn_implementation, _attached.stored_in(model.config)
        model.set_attn_implementation(adapter.NAME)
        adapter.configure(model, layers="none", method="sts draft")
        try:
            with torch.no_grad():
                model.model(ids, past_key_values=cache, use_cache=cache is not None)
        finally:
            for config in _attached.configs_of(model):
                setattr(config, adapter.NAME, before[1][0])
                setattr(config, _attached.METHOD, before[1][1])
            model.set_attn_implementation(before[0])
        if len(votes.scores) != model.config.num_hidden_layers:
            raise InvalidArgument(
                f"input_ids: must be long enough for every layer to be served, of "
                f"{model.config.num_hidden_layers} layers {len(votes.scores)} were "
                f"({ids.shape[1]} tokens)"
            )
        return votes


def _check_ids(ids: Any) -> Any:
    ids = ids if ids.dim() == 2 else ids[None]
    if ids.shape[0] != 1:
        raise InvalidArgument(f"input_ids: must be [1, tokens], is {list(ids.shape)}")
    return ids


def calibrate(
    target: Any, draft: Any, input_ids: Any, *, top: int = 64, window: int = 128, heads: int = 1
) -> HeadMap:
    """Maps every KV head of the target to the draft heads that look at the same tokens.

    Args:
      target, draft: models of transformers that read the same tokens.
      input_ids: [1, tokens] of ordinary text, a few thousand.
      top: the most looked-at tokens that are compared.
      window: last queries that vote.
      heads: draft heads for each KV head.
    """
    ids = _check_ids(input_ids)
    prefix = ids.shape[1] - min(window, ids.shape[1])
    if not 0 < top <= prefix:
        raise InvalidArgument(f"top: must lie in 1 .. {prefix}, the tokens before the window, is {top}")
    all_heads = numbers(draft.config)["num_layers"] * numbers(draft.config)["num_heads"]
    if not 0 < heads <= all_heads:
        raise InvalidArgument(f"heads: must lie in 1 .. {all_heads}, is {heads}")
    groups = numbers(target.config)["num_kv_heads"]

    def marks(scores: Any) -> Any:  # [sets, P], 1 at the set's top tokens
        best = scores.T.topk(top).indices
        return torch.zeros_like(scores.T).scatter_(1, best, 1.0)

    of_target = _Votes.read(target, ids, window, 1).scores
    of_draft = _Votes.read(draft, ids.to(draft.device), window, 1).scores
    per_layer = next(iter(of_draft.values())).shape[1]
    drawn = torch.cat([marks(of_draft[layer]) for layer in sorted(of_draft)])
    found, overlap = [], []
    for layer in sorted(of_target):
        grouped = of_target[layer].unflatten(1, (groups, -1)).mean(2)
        common = marks(grouped).to(drawn.device) @ drawn.T
        best = (common / (2 * top - common)).topk(heads)
        found.append([[divmod(int(i), per_layer) for i in row] for row in best.indices])
        overlap.append([round(float(row[0]), 4) for row in best.values])
    return HeadMap(
        numbers(target.config), numbers(draft.config), found, overlap, top, window, ids.shape[1]
    )


@dataclass(frozen=True)
class Answer:
    """What `generate` returns.

    Attributes:
      tokens: of the answer.
      draft_seconds: the draft's reading of the prompt.
      seconds_to_first_token: draft and target.
      seconds: of all.
      kept_share, pairs_share: of the target's sparse layers, and of all its attention; the draft's
        own pairs are not in it.
    """

    tokens: list[int]
    draft_seconds: float
    seconds_to_first_token: float
    seconds: float
    kept_share: float | None
    pairs_share: float | None


class Sts:
    """A target and its draft.

    Args:
      target, draft: models of transformers that read the same tokens.
      heads: a HeadMap, or the path of one.
      tokenizers: of target and draft, to be compared; without them the sizes of the vocabularies are.
      setting, **changes: of the target's sparse layers, see `tokensparse.transformers.configure`; its
        window and pool are those of the draft's vote.

    Raises:
      InvalidArgument: another tokenizer, or a map made for other models.
    """

    def __init__(
        self,
        target: Any,
        draft: Any,
        heads: HeadMap | str,
        *,
        tokenizers: tuple[Any, Any] | None = None,
        setting: Any = None,
        **changes: Any,
    ) -> None:
        self.target, self.draft = target, draft
        self.heads = heads if isinstance(heads, HeadMap) else HeadMap.load(heads)
        self.heads.check(target, draft)
        if tokenizers is not None:
            if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
                raise InvalidArgument("draft: must have the target's tokenizer, has another one")
        elif target.config.vocab_size != draft.config.vocab_size:
            raise InvalidArgument(
                f"draft: must have the target's tokenizer; the vocabularies have "
                f"{target.config.vocab_size} and {draft.config.vocab_size} entries. Give both "
                "tokenizers if they are the same but for padding"
            )
        self._votes: _Votes | None = None
        target.set_attn_implementation(adapter.NAME)
        methods.register("sts", self.choose)
        self.setting = adapter.configure(target, setting, method="sts", **changes)

    def read(self, input_ids: Any, cache: Any = None) -> float:
        """Lets the draft read a whole prompt; the target's next pass over it is sparse.

        Args:
          input_ids: [1, tokens].
          cache: of transformers, for the draft to go on from.

        Returns:
          Seconds that it took.
        """
        began = time.perf_counter()
        ids = _check_ids(input_ids).to(self.draft.device)
        setting = self.setting
        self._votes = _Votes.read(self.draft, ids, setting.window, setting.pool, cache)
        if ids.device.type == "cuda":
            torch.cuda.synchronize(ids.device)
        return time.perf_counter() - began

    def choose(self, layer: int, q: Any, k: Any, state: State) -> Choice:
        if dense := tsa.why_dense(q, k, state):
            return dense
        votes = self._votes
        if votes is None or state.lengths(q, k) != [(votes.length, votes.length)]:
            return Dense("the draft has not read this prompt")
        rows = []
        for pairs in self.heads.heads[layer]:
            rows.append(torch.stack([votes.scores[a][:, b] for a, b in pairs]).mean(0))
        setting = state.setting
        return ops.select(
            torch.stack(rows, 1).contiguous().to(q.device),
            q.shape[0],
            k.shape[0],
            coverage=setting.coverage_of(votes.length),
            keep=setting.keep or None,
            window=setting.window,
            min_tokens=setting.min_tokens,
        )

    def generate(
        self, input_ids: Any, max_new_tokens: int = 64, decode_keep: int | None = None
    ) -> Answer:
        """Greedy, the draft's reading included.

        Args:
          input_ids: [1, tokens] on the target's device.
          max_new_tokens: of the answer, >= 1.
          decode_keep: keys that a KV head of a sparse layer reads in a step of the answer, the first 4
            and last 64 among them; None = all.
        """
        check_answer_length(max_new_tokens)
        ids = _check_ids(input_ids)
        adapter.report(self.target, reset=True)
        began = time.perf_counter()
        if decode_keep is None:
            tokens, draft_seconds, first = self._generate(ids, max_new_tokens)
        else:
            reading = sts_decoding.Reading(self, ids, decode_keep)
            tokens = greedy(self.target, reading.logits, reading.push, max_new_tokens)
            draft_seconds, first = reading.draft_seconds, reading.seconds
        seconds, report = time.perf_counter() - began, adapter.report(self.target, reset=True)
        return Answer(tokens, draft_seconds, first, seconds, report.kept_share, report.pairs_share)

    def _generate(self, ids: Any, max_new_tokens: int) -> tuple[list[int], float, float]:
        """Tokens, the draft's seconds, and those to the first token."""
        draft_seconds = self.read(ids)
        began, first = time.perf_counter(), []

        def note(_: Any, scores: Any) -> Any:
            if not first:
                int(scores[0].argmax())  # waits for the device
                first.append(time.perf_counter() - began)
            return scores

        with torch.no_grad():
            out = self.target.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens,
                do_sample=False, logits_processor=[note],
            )  # fmt: skip
        return out[0, ids.shape[1] :].tolist(), draft_seconds, draft_seconds + first[0]
