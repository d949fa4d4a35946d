# SPDX-License-Identifier: MIT
"""The engine of lab.engines.restated inside transformers."""
import dataclasses

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from lab.engines import EngineError, hugging_face, restated, sparse_layers

NAME = "lab_restated"
MIN_ROWS = 64  # fewer query rows are answers, not prompts


def _by_layer(setting, num_layers):
    """What `by_layer` changes: {"1-12": {"coverage": 0.05}} to {layer: change}."""
    changes = {}
    for text, change in setting.get("by_layer", {}).items():
        first, _, last = text.partition("-")
        layers = range(int(first), int(last or first) + 1)
        if not 0 <= layers[0] <= layers[-1] < num_layers:
            raise EngineError(f"by_layer: must be layers of 0-{num_layers - 1}, is {text}")
        changes.update({layer: change for layer in layers})
    return changes


class Engine:
    def __init__(self, path, device=None, chunk=0, raw=False):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # cuDNN makes a plan for every length, about 50 ms on an H200 (2026-11-27), and the kept
        # tokens are of another number in every layer.
        torch.backends.cuda.enable_cudnn_sdp(False)
        AttentionInterface.register(NAME, self._attention)
        AttentionMaskInterface.register(NAME, flash_attention_mask)
        self._model, self.tokenizer = hugging_face.load(path, NAME, device, raw)
        self._driver = hugging_face.Driver(self._model, self.tokenizer, chunk)
        self._layers, self._setting, self._changes, self._seen = set(), {}, {}, {}
        kind = f"restated, chunks of {chunk}" if chunk else "restated, whole prompts"
        self.subject = hugging_face.subject(self._model, path, kind, device)
        self.model = hugging_face.numbers(path, self._model.config)
        self.limit = self._model.config.max_position_embeddings
        kinds = getattr(self._model.config, "layer_types", None) or []
        self._windowed = {layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"}

    def _attention(self, module, query, key, value, attention_mask, scaling=None, **_):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer, rows, keys = module.layer_idx, query.shape[2], key.shape[2]
        q, k, v = query[0], key[0], value[0]
        dense = rows * (keys - rows) + rows * (rows + 1) / 2
        setting = {**self._setting, **self._changes.get(layer, {})}
        if 0 < setting.get("long_keys", 0) <= keys:
            setting["coverage"] = setting["long_coverage"]
        window = getattr(module, "sliding_window", None) or 0
        if 0 < window < keys:
            out, kept = restated.local(q, k, v, scale, 0, window), 1.0
            at = torch.arange(keys - rows, keys)
            pairs = dense = float(restated.local_pairs(at, 0, window).sum())
        elif rows >= max(MIN_ROWS, setting.get("min_rows", 0)) and layer in self._layers and keys >= setting.get("min_keys", 0):
            out, pairs, kept = restated.attend(q, k, v, scale, setting)
        else:
            out, pairs, kept = restated.causal(q, k, v, scale), dense, 1.0
        if rows >= MIN_ROWS:
            total = self._seen.setdefault(layer, [0.0, 0.0, 0.0, 0])
            for at, value_at in enumerate((pairs, dense, kept, 1)):
                total[at] += value_at
        return out.transpose(0, 1)[None].contiguous(), None

    def _pairs_and_kept(self):
        seen = self._seen.values()
        return (
            sum(float(pairs) for pairs, _, _, _ in seen) / sum(dense for _, dense, _, _ in seen),
            sum(kept / calls for _, _, kept, calls in seen) / len(seen),
        )

    def measure(self, prompt, setting, generate=False):
        num_layers = self.subject["num_layers"]
        restated.check(setting)
        self._setting, self._seen = setting, {}
        self._layers = sparse_layers(setting, num_layers, self._windowed)
        self._changes = _by_layer(setting, num_layers)
        got = self._driver.measure(prompt, generate, self._pairs_and_kept)
        by_layer = [round(float(pairs) / dense, 4) for _, (pairs, dense, *_) in sorted(self._seen.items())]
        return dataclasses.replace(got, more={**got.more, "pairs_by_layer": by_layer})
