# SPDX-License-Identifier: MIT
"""The engine of lab.engines.restated inside transformers."""
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from lab.engines import hugging_face, restated, sparse_layers

NAME = "lab_restated"
MIN_ROWS = 64  # fewer query rows are answers, not prompts


class Engine:
    def __init__(self, path, device=None, chunk=0):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        AttentionInterface.register(NAME, self._attention)
        AttentionMaskInterface.register(NAME, flash_attention_mask)
        self._model, self.tokenizer = hugging_face.load(path, NAME, device)
        self._driver = hugging_face.Driver(self._model, self.tokenizer, chunk)
        self._layers, self._setting, self._seen = set(), {}, {}
        kind = f"restated, chunks of {chunk}" if chunk else "restated, whole prompts"
        self.subject = hugging_face.subject(self._model, path, kind, device)
        self.model = hugging_face.numbers(self._model, path)
        self.limit = self._model.config.max_position_embeddings

    def _attention(self, module, query, key, value, attention_mask, scaling=None, **_):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer, rows, keys = module.layer_idx, query.shape[2], key.shape[2]
        q, k, v = query[0], key[0], value[0]
        dense = rows * (keys - rows) + rows * (rows + 1) / 2
        if rows >= MIN_ROWS and layer in self._layers:
            out, pairs, kept = restated.attend(q, k, v, scale, self._setting)
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
            sum(float(pairs) / dense for pairs, dense, _, _ in seen) / len(seen),
            sum(kept / calls for _, _, kept, calls in seen) / len(seen),
        )

    def measure(self, prompt, setting, generate=False):
        self._setting, self._seen = setting, {}
        self._layers = sparse_layers(setting, self.subject["num_layers"])
        return self._driver.measure(prompt, generate, self._pairs_and_kept)
