# SPDX-License-Identifier: MIT
"""A model in transformers: chunks, teacher forcing, generation. What two engines share."""
import contextlib
import json
import pathlib
import time

import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from lab.engines import EngineError, Measurement, costs
from lab.prompts import Tokenizer


def _where(path):
    path = pathlib.Path(path)
    if not path.exists():
        raise EngineError(f"model: no such file or folder: {path}")
    if path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path)}


@contextlib.contextmanager
def _reading(path):
    """Where transformers finds a model; within it a GGUF file is read quickly."""
    where = _where(path)
    if "gguf_file" not in where:
        yield where
        return
    from lab.engines import gguf_file  # needs gguf, which Hugging Face folders do without

    with gguf_file.quick(path):
        yield where


def by_merges(spec):
    """A tokenizer of SentencePiece's scores, as transformers reads it from a GGUF file, as what it is.

    Such a file's scores are ranks of merges ("llama" is byte-pair encoding in GGUF), not the
    probabilities that transformers takes them for, which cuts words into shreds.
    """
    pieces = spec["model"]["vocab"]
    vocab = {piece: at for at, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(-score, *pair) for pair in halves if pair[0] in vocab and pair[1] in vocab]
    merges.sort(key=lambda merge: merge[0])
    model = {"type": "BPE", "unk_token": pieces[spec["model"]["unk_id"]][0], "fuse_unk": True,
             "byte_fallback": True, "vocab": vocab, "merges": [pair for _, *pair in merges]}  # fmt: skip
    return {**spec, "model": model}


def _tokenizer(where):
    tokenizer = AutoTokenizer.from_pretrained(**where)
    spec = json.loads(tokenizer.backend_tokenizer.to_str()) if "gguf_file" in where else {}
    if spec.get("model", {}).get("type") == "Unigram":
        tokenizer._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(by_merges(spec)))
    return tokenizer


def tokenizer_of(path, raw=False):
    """(tokenizer, longest prompt) of a model."""
    with _reading(path) as where:
        limit = AutoConfig.from_pretrained(**where).max_position_embeddings
        return Tokenizer(_tokenizer(where), raw), limit


def load(path, attention, device, raw=False):
    """(model, tokenizer) of a Hugging Face folder, or of a GGUF file dequantised to bf16."""
    with _reading(path) as where:
        tokenizer = Tokenizer(_tokenizer(where), raw)
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.bfloat16, attn_implementation=attention
        )
    return model.to(device).eval(), tokenizer


def convert(path, folder):
    """Dequantises a GGUF file to a Hugging Face folder in bf16, which many processes load in seconds."""
    with _reading(path) as where:
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
        tokenizer = _tokenizer(where)
    model.hf_quantizer = None  # else it is not saved
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def numbers(path, config=None):
    """What a setting file says of the model it is for."""
    if config is None:
        with _reading(path) as where:
            config = AutoConfig.from_pretrained(**where)
    heads = config.num_attention_heads
    return {
        "name": pathlib.Path(path).stem,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }


def subject(model, path, engine, device):
    """What results of this model and engine are kept under."""
    config = model.config
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "model": pathlib.Path(path).name,
        "num_layers": config.num_hidden_layers,
        "engine": engine,
        "device": name,
    }


def judged(logits, answer, prompt):
    """(loss, exact) of the answer's tokens."""
    logits = logits.float()
    loss = torch.nn.functional.cross_entropy(logits, answer)
    exact = float((logits.argmax(-1) == answer).all()) if prompt.refs else None
    return float(loss), exact


class Meter:
    """Memory of a GPU from now on."""

    def __init__(self, device):
        self._device = device if torch.device(device).type == "cuda" else None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)

    def bytes(self):
        """Beyond what was allocated when this was made."""
        if self._device is None:
            return {}
        peak, now = torch.cuda.max_memory_allocated(self._device), torch.cuda.memory_allocated(self._device)
        return {"peak_bytes": peak - self._before, "held_bytes": now - self._before}


def pushed(logits, push, answer, prompt):
    """(loss, exact, steps, seconds) of an answer given to `push` token by token."""
    device = logits.device
    rows, began = [logits], time.perf_counter()
    rows += [push(token) for token in answer[:-1]]
    int(rows[-1].argmax())  # waits for the device
    seconds = time.perf_counter() - began
    loss, exact = judged(torch.stack(rows), torch.tensor(answer, device=device), prompt)
    return loss, exact, len(rows) - 1, seconds


class Driver:
    """Runs a prompt through a model in chunks and reads the answer's tokens off it."""

    def __init__(self, model, tokenizer, chunk, decoding=0):
        self._model, self._tokenizer = model, tokenizer
        self._chunk = chunk  # 0: the whole prompt at once
        self._decoding = decoding  # tokens of the answer that are timed one by one

    @torch.no_grad()
    def measure(self, prompt, generate, pairs_and_kept):
        """pairs_and_kept() is asked when the prompt has been read."""
        device, meter = self._model.device, Meter(self._model.device)
        ids = torch.tensor([prompt.tokens], device=device)
        cache = DynamicCache()
        began = time.perf_counter()
        step = self._chunk or ids.shape[1]
        for begin in range(0, ids.shape[1], step):
            piece = ids[:, begin : begin + step]
            out = self._model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[0, -1:]
        first = int(logits.argmax())  # waits for the device
        seconds = time.perf_counter() - began
        pairs, kept = pairs_and_kept()
        del out
        text = self._generate(cache, first, prompt.new_tokens) if generate else None
        more = self._decode(cache, prompt, meter) if self._decoding else {}
        answer = torch.tensor([prompt.answer_tokens], device=device)
        if answer.shape[1] > 1:
            rest = self._model(answer[:, :-1], past_key_values=cache, use_cache=True).logits[0]
            logits = torch.cat([logits, rest])
        loss, exact = judged(logits, answer[0], prompt)
        return Measurement(loss, exact, seconds, pairs, kept, text, more)

    def _decode(self, cache, prompt, meter):
        """How fast the answer's tokens go through one by one; the cache is as before when it returns."""
        length, began = cache.get_seq_length(), time.perf_counter()
        for token in prompt.answer_tokens[: self._decoding]:
            piece = torch.tensor([[token]], device=self._model.device)
            out = self._model(piece, past_key_values=cache, use_cache=True)
        int(out.logits[0, -1].argmax())  # waits for the device
        steps, seconds = cache.get_seq_length() - length, time.perf_counter() - began
        del out
        found = costs(steps, seconds, meter)
        cache.crop(length - cache.get_seq_length())
        return found

    def _generate(self, cache, token, limit):
        """Greedy; the cache is as before when it returns."""
        length, tokens = cache.get_seq_length(), []
        stops = self._model.generation_config.eos_token_id
        stops = set(stops if isinstance(stops, list) else [stops])
        while len(tokens) < limit and token not in stops:
            tokens.append(token)
            piece = torch.tensor([[token]], device=self._model.device)
            out = self._model(piece, past_key_values=cache, use_cache=True)
            token = int(out.logits[0, -1].argmax())
        cache.crop(length - cache.get_seq_length())
        return self._tokenizer.decode(tokens)
