# SPDX-License-Identifier: MIT
"""The package's adapter inside transformers: the library's own kernels, on a CPU or a GPU.

A setting with a `method` is served by that one: {"method": "lazyllm", "layers": [..], "keep": [..]},
or {"method": "sts", ...} with the fields of a setting, where a draft and its head map are given.
"""
import torch

import tokensparse.transformers as adapter
from lab.engines import EngineError, Measurement, hugging_face
from tokensparse import InvalidArgument, Unsupported


class Engine:
    def __init__(self, path, device=None, chunk=0, draft=None, head_map=None):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self.tokenizer = hugging_face.load(path, "tokensparse", device)
        self._driver = hugging_face.Driver(self._model, self.tokenizer, chunk)
        kind = f"transformers, chunks of {chunk}" if chunk else "transformers, whole prompts"
        self.subject = hugging_face.subject(self._model, path, kind, device)
        self.model = hugging_face.numbers(self._model, path)
        self.limit = self._model.config.max_position_embeddings
        self._draft = hugging_face.load(draft, "tokensparse", device)[0] if draft else None
        self._head_map = head_map

    def measure(self, prompt, setting, generate=False):
        setting = dict(setting)
        method = setting.pop("method", "tsa")
        serve = {"tsa": self._tsa, "sts": self._sts, "lazyllm": self._lazyllm}.get(method)
        if serve is None:
            raise EngineError(f"method: must be tsa, sts or lazyllm, is {method!r}")
        try:
            return serve(prompt, setting, generate)
        except (InvalidArgument, Unsupported) as error:
            raise EngineError(f"{method}: {error}") from None

    def _tsa(self, prompt, setting, generate):
        adapter.configure(self._model, setting=setting or {"layers": "none"}, method="tsa")
        return self._driver.measure(prompt, generate, self._pairs_and_kept)

    def _sts(self, prompt, setting, generate):
        from tokensparse.methods.sts import Sts

        if self._draft is None or self._head_map is None:
            raise EngineError("sts: needs --draft MODEL and --head-map FILE")
        pair = Sts(self._model, self._draft, self._head_map, setting=setting)
        drafted = pair.read(torch.tensor([prompt.tokens], device=self._model.device))
        got = self._driver.measure(prompt, generate, self._pairs_and_kept)
        return Measurement(
            got.loss, got.exact, got.seconds + drafted, got.pairs, got.kept, got.text
        )

    @torch.no_grad()
    def _lazyllm(self, prompt, setting, generate):
        from tokensparse.methods.lazyllm import LazyLLM, Schedule

        for name in ("layers", "keep"):
            setting[name] = tuple(setting.get(name, ()))
        lazy = LazyLLM(self._model, Schedule(**setting))
        ids = torch.tensor([prompt.tokens], device=self._model.device)
        text = None
        if generate:
            tokens = lazy.generate(ids, prompt.new_tokens).tokens
            text = self.tokenizer.decode(tokens)
        reading = lazy.read(ids, len(prompt.answer_tokens))
        logits = [reading.logits]
        logits += [reading.push(token) for token in prompt.answer_tokens[:-1]]
        answer = torch.tensor(prompt.answer_tokens, device=self._model.device)
        loss, exact = hugging_face.judged(torch.stack(logits), answer, prompt)
        return Measurement(loss, exact, reading.seconds, reading.pairs_share, reading.rows_share, text)

    def _pairs_and_kept(self):
        report = adapter.report(self._model, reset=True)
        kept = report.kept_share  # None where no layer was to be sparse
        return report.pairs_share, 1.0 if kept is None else kept
