# SPDX-License-Identifier: MIT
"""STS while decoding: before each step of the target the draft reads the token, and its attention says
which of the target's keys the step reads. The others stay in the cache for the steps to come."""

from __future__ import annotations

import time
from typing import Any

from .._library import InvalidArgument
from .._model import sparse_layers
from .._need import need
from ._decoders import check_decoder, one_sequence, run_layers

torch = need("torch", "2.6", "tokensparse.methods.sts_decoding")
need("transformers", "5.0", "tokensparse.methods.sts_decoding")

from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["Reading"]

NAME = "tokensparse_sts_decoding"


def _probabilities(query: Any, key: Any, scaling: Any) -> Any:
    """Of one query, all heads [Hq, tokens]."""
    q = query[0, :, 0].unflatten(0, (key.shape[1], -1)).float()
    logits = torch.einsum("hgd,hkd->hgk", q * scaling, key[0].float())
    return logits.softmax(-1).flatten(0, 1)


class Reading:
    """A prompt that draft and target have read, and what was pushed behind it since.

    Attributes:
      logits: of the last token.
      draft_seconds, seconds: of the prompt; the latter of both models.
      held: of each step, where `watch` asks for it: the share of the target's attention that the keys
        it read hold, and the share that as many of the best keys hold; mean over the sparse layers.
    """

    def __init__(
        self, pair: Any, input_ids: Any, keep: int, *, sink: int = 4, recent: int = 64, watch: bool = False
    ) -> None:
        """Args:
        pair: an Sts.
        input_ids: [1, tokens] on the target's device.
        keep: keys that a KV head of a sparse layer reads in a step.
        sink, recent: first and last keys that are always among them.
        watch: fill `held`; costs time.
        """
        self._pair, target, draft = pair, pair.target, pair.draft
        check_decoder(target)
        check_decoder(draft)
        if sink < 0 or recent < 1 or keep < sink + recent:
            raise InvalidArgument(
                f"decode_keep: must hold the {sink} first and {recent} last keys, is {keep}"
            )
        self._keep, self._sink, self._recent, self._watch = keep, sink, recent, watch
        # A prompt that is to be read exactly has layers too.
        self._sparse = sparse_layers(pair.setting.changed(coverage=0.5), target.config)
        self._index = self._draft_heads()
        self.held: list[tuple[float, float]] = []
        ids = one_sequence(input_ids)
        self._draft_cache, self._target_cache = DynamicCache(), DynamicCache()
        self.length = ids.shape[1]
        began = time.perf_counter()
        self.draft_seconds = pair.read(ids, self._draft_cache)
        with torch.no_grad():
            out = target(ids, past_key_values=self._target_cache, use_cache=True, logits_to_keep=1)
        self.logits = out.logits[0, -1]
        self.logits.argmax().item()  # waits for the device
        self.seconds = time.perf_counter() - began

    def _draft_heads(self) -> Any:
        """[layer][Hkv, n] of the rows of `self._seen`."""
        per_layer = self._pair.draft.config.num_attention_heads
        flat = [[[a * per_layer + b for a, b in s] for s in layer] for layer in self._pair.heads.heads]
        return [[torch.tensor(s, device=self._pair.target.device) for s in layer] for layer in flat]

    @torch.no_grad()
    def push(self, token: int) -> Any:
        """Logits behind one more token."""
        target, draft = self._pair.target, self._pair.draft
        positions = torch.tensor([self.length], device=target.device)
        ids = torch.tensor([token], device=target.device)
        self.length += 1
        self._seen, self._shares = [], []
        run_layers(
            draft, ids.to(draft.device), positions.to(draft.device), self._draft_cache, NAME, sts_draft=self
        )
        self._seen = torch.cat(self._seen).to(target.device)
        hidden = run_layers(target, ids, positions, self._target_cache, NAME, sts_target=self)
        if self._shares:
            self.held.append(tuple(torch.stack(self._shares).mean(0).tolist()))
        self.logits = target.lm_head(target.model.norm(hidden[:, -1:]))[0, -1]
        return self.logits

    def see(self, query: Any, key: Any, scaling: Any) -> None:
        """What a head of the draft looks at."""
        self._seen.append(_probabilities(query, key, scaling))

    def chosen(self, layer: int, query: Any, key: Any, scaling: Any) -> Any:
        """The keys that a layer reads [Hkv, keep], ascending; None = all."""
        if layer not in self._sparse or self._keep >= key.shape[2]:
            return None
        votes = torch.stack([self._seen[heads].mean(0) for heads in self._index[layer]])
        votes[:, : self._sink] = votes[:, -self._recent :] = float("inf")
        chosen = votes.topk(self._keep).indices.sort().values
        if self._watch:
            own = _probabilities(query, key, scaling).unflatten(0, (key.shape[1], -1)).mean(1)
            shares = own.gather(1, chosen).sum(1).mean(), own.topk(self._keep).values.sum(1).mean()
            self._shares.append(torch.stack(shares))
        return chosen


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any):
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if draft := kwargs.get("sts_draft"):
        draft.see(query, key, scaling)
    if target := kwargs.get("sts_target"):
        chosen = target.chosen(module.layer_idx, query, key, scaling)
        if chosen is not None:
            index = chosen[None, :, :, None].expand(-1, -1, -1, key.shape[3])
            key, value = key.gather(2, index), value.gather(2, index)
    return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)


AttentionInterface.register(NAME, _attention)
