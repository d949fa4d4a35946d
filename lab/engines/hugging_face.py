# SPDX-License-Identifier: MIT
"""A model in transformers: chunks, teacher forcing, generation. What two engines share."""
import pathlib
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from lab.engines import EngineError, Measurement
from lab.prompts import Tokenizer


def _where(path):
    path = pathlib.Path(path)
    if not path.exists():
        raise EngineError(f"model: no such file or folder: {path}")
    if path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path)}


def tokenizer_of(path):
    """(tokenizer, longest prompt) of a model."""
    where = _where(path)
    limit = AutoConfig.from_pretrained(**where).max_position_embeddings
    return Tokenizer(AutoTokenizer.from_pretrained(**where)), limit


def load(path, attention, device):
    """(model, tokenizer) of a Hugging Face folder, or of a GGUF file dequantised to bf16."""
    where = _where(path)
    tokenizer = Tokenizer(AutoTokenizer.from_pretrained(**where))
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, attn_implementation=attention
    )
    return model.to(device).eval(), tokenizer


def numbers(model, path):
    """What a setting file says of the model it is for."""
    config = model.config
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


class Driver:
    """Runs a prompt through a model in chunks and reads the answer's tokens off it."""

    def __init__(self, model, tokenizer, chunk):
        self._model, self._tokenizer = model, tokenizer
        self._chunk = chunk  # 0: the whole prompt at once

    @torch.no_grad()
    def measure(self, prompt, generate, pairs_and_kept):
        """pairs_and_kept() is asked when the prompt has been read."""
        device = self._model.device
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
        text = self._generate(cache, first, prompt.new_tokens) if generate else None
        answer = torch.tensor([prompt.answer_tokens], device=device)
        if answer.shape[1] > 1:
            more = self._model(answer[:, :-1], past_key_values=cache, use_cache=True).logits[0]
            logits = torch.cat([logits, more])
        loss, exact = judged(logits, answer[0], prompt)
        return Measurement(loss, exact, seconds, pairs, kept, text)

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
