# SPDX-License-Identifier: MIT
"""The package's adapter inside transformers: the library's own kernels, on a CPU or a GPU."""
import torch

import tokensparse.transformers as adapter
from lab.engines import hugging_face


class Engine:
    def __init__(self, path, device=None, chunk=0):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self.tokenizer = hugging_face.load(path, "tokensparse", device)
        self._driver = hugging_face.Driver(self._model, self.tokenizer, chunk)
        kind = f"transformers, chunks of {chunk}" if chunk else "transformers, whole prompts"
        self.subject = hugging_face.subject(self._model, path, kind, device)
        self.model = hugging_face.numbers(self._model, path)
        self.limit = self._model.config.max_position_embeddings

    def measure(self, prompt, setting, generate=False):
        adapter.configure(self._model, setting=setting or {"layers": "none"})
        return self._driver.measure(prompt, generate, self._pairs_and_kept)

    def _pairs_and_kept(self):
        report = adapter.report(self._model, reset=True)
        kept = report.kept_share  # None where no layer was to be sparse
        return report.pairs_share, 1.0 if kept is None else kept
