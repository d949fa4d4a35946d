# SPDX-License-Identifier: MIT
"""The package's adapter inside transformers: the library's own kernels, on a CPU or a GPU.

A setting with a `method` is served by that one, each with options of its own:
  {"method": "lazyllm", "layers": [..], "keep": [..]}
  {"method": "sts", ...}  the fields of a setting, and `decode`, the keys that a step of the answer reads;
                          a draft and its head map are given
  {"method": "adore", "cache": 2048, "rebuild": 16}  a controller is given
"""
import dataclasses

import torch

import tokensparse.transformers as adapter
from lab.engines import EngineError, Measurement, costs, hugging_face
from tokensparse import InvalidArgument, Unsupported


def _check(setting, *known):
    for name in setting:
        if name not in known:
            raise EngineError(f"{name}: must be one of {', '.join(known)}")


class Engine:
    def __init__(self, path, device=None, chunk=0, draft=None, head_map=None, controller=None, decoding=0, raw=False):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self.tokenizer = hugging_face.load(path, "tokensparse", device, raw)
        self._driver = hugging_face.Driver(self._model, self.tokenizer, chunk, decoding)
        kind = f"transformers, chunks of {chunk}" if chunk else "transformers, whole prompts"
        self.subject = hugging_face.subject(self._model, path, kind, device)
        self.model = hugging_face.numbers(path, self._model.config)
        self.limit = self._model.config.max_position_embeddings
        self._draft = hugging_face.load(draft, "tokensparse", device)[0] if draft else None
        self._head_map, self._controller = head_map, controller

    def measure(self, prompt, setting, generate=False):
        setting = dict(setting)
        method = setting.pop("method", "tsa")
        serve = _METHODS.get(method)
        if serve is None:
            raise EngineError(f"method: must be one of {', '.join(_METHODS)}, is {method!r}")
        try:
            return serve(self, prompt, setting, generate)
        except (InvalidArgument, Unsupported) as error:
            raise EngineError(f"{method}: {error}") from None

    def _tsa(self, prompt, setting, generate):
        adapter.configure(self._model, setting=setting or {"layers": "none"}, method="tsa")
        got = self._driver.measure(prompt, generate, self._pairs_and_kept)
        return dataclasses.replace(got, more={**got.more, "pairs_by_layer": self._by_layer})

    def _sts(self, prompt, setting, generate):
        from tokensparse.methods.sts import Sts

        if self._draft is None or self._head_map is None:
            raise EngineError("sts: needs --draft MODEL and --head-map FILE")
        decode, watch = setting.pop("decode", None), setting.pop("watch", False)
        pair = Sts(self._model, self._draft, self._head_map, setting=setting)
        ids = torch.tensor([prompt.tokens], device=self._model.device)
        if decode is not None:
            return self._sts_decoding(prompt, pair, ids, decode, watch, generate)
        drafted = pair.read(ids)
        got = self._driver.measure(prompt, generate, self._pairs_and_kept)
        return dataclasses.replace(got, seconds=got.seconds + drafted)

    def _sts_decoding(self, prompt, pair, ids, decode, watch, generate):
        from tokensparse.methods.sts_decoding import Reading

        adapter.report(self._model, reset=True)
        text, meter = None, hugging_face.Meter(self._model.device)
        if generate:
            text = self.tokenizer.decode(pair.generate(ids, prompt.new_tokens, decode).tokens)
        reading = Reading(pair, ids, decode, watch=watch)
        pairs, kept = self._pairs_and_kept()
        got = hugging_face.pushed(reading.logits, reading.push, prompt.answer_tokens, prompt)
        more = costs(*got[2:], meter)
        if reading.held:
            means = [sum(values) / len(values) for values in zip(*reading.held)]
            more["held"], more["held_at_best"] = (round(mean, 5) for mean in means)
        return Measurement(*got[:2], reading.seconds, pairs, kept, text, more)

    @torch.no_grad()
    def _lazyllm(self, prompt, setting, generate):
        from tokensparse.methods.lazyllm import LazyLLM, Schedule

        _check(setting, "layers", "keep", "window", "pool")
        for name in ("layers", "keep"):
            setting[name] = tuple(setting.get(name, ()))
        lazy = LazyLLM(self._model, Schedule(**setting))
        ids = torch.tensor([prompt.tokens], device=self._model.device)
        text = None
        if generate:
            tokens = lazy.generate(ids, prompt.new_tokens).tokens
            text = self.tokenizer.decode(tokens)
        meter = hugging_face.Meter(self._model.device)
        reading = lazy.read(ids, len(prompt.answer_tokens))
        got = hugging_face.pushed(reading.logits, reading.push, prompt.answer_tokens, prompt)
        more = {**costs(*got[2:], meter), "computed": round(reading.computed_share, 5)}
        pairs, rows = reading.pairs_share, reading.rows_share
        return Measurement(*got[:2], reading.seconds, pairs, rows, text, more)

    def _adore(self, prompt, setting, generate):
        from tokensparse.methods.adore import Adore, Controller

        if self._controller is None:
            raise EngineError("adore: needs --controller FILE")
        _check(setting, "cache", "rebuild", "sink", "recent")
        small = Adore(self._model, Controller.load(self._controller), **setting)
        adapter.configure(self._model, layers="none", method="tsa")
        ids = torch.tensor([prompt.tokens], device=self._model.device)
        text = None
        if generate:
            text = self.tokenizer.decode(small.generate(ids, prompt.new_tokens).tokens)
        meter = hugging_face.Meter(self._model.device)
        reading = small.read(ids)
        got = hugging_face.pushed(reading.logits, reading.push, prompt.answer_tokens, prompt)
        kept = reading.count / reading.length
        return Measurement(*got[:2], reading.seconds, 1.0, kept, text, costs(*got[2:], meter))

    def _pairs_and_kept(self):
        report = adapter.report(self._model, reset=True)
        kept = report.kept_share  # None where no layer was to be sparse
        shares = [layer.pairs_share for layer in report]
        self._by_layer = [None if share is None else round(share, 4) for share in shares]
        return report.pairs_share, 1.0 if kept is None else kept


_METHODS = {"tsa": Engine._tsa, "sts": Engine._sts, "lazyllm": Engine._lazyllm, "adore": Engine._adore}
