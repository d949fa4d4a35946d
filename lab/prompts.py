# SPDX-License-Identifier: MIT
"""Samples cut to a length in tokens, the same for every setting and engine."""
import dataclasses
import gzip
import hashlib
import json

from lab.tasks import TASKS, rng_for

SEED = 42  # RULER's


class PromptError(ValueError):
    """A prompt that cannot be made: the length does not hold it, the model has no template."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    task: str
    length: int  # tokens asked for: prompt, answer's room and all
    index: int
    tokens: tuple
    answer_tokens: tuple  # teacher-forced behind the prompt
    refs: tuple
    new_tokens: int

    @property
    def key(self):
        return f"{self.task}/{self.length}/{self.index}"

    @property
    def digest(self):
        """Tells whether two runs asked the same."""
        text = repr((self.tokens, self.answer_tokens)).encode()
        return hashlib.sha256(text).hexdigest()[:12]


def index_of(key):
    """Of a prompt's key, which index it is of."""
    return int(key.rsplit("/", 1)[1])


class Tokenizer:
    """What making prompts needs of a Hugging Face tokenizer."""

    def __init__(self, tokenizer, raw=False):
        """raw: questions are plain text that the model goes on with, as base models are asked."""
        self._tokenizer, self._raw = tokenizer, raw
        if not raw and getattr(tokenizer, "chat_template", None) is None:
            raise PromptError(
                "model: has no chat template, and the tasks are questions to a chat; --raw asks"
                " plain text, as base models are asked"
            )

    def encode(self, text):
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def prompt(self, sample):
        begin = (self._tokenizer.bos_token or "") if self._raw else ""
        if sample.raw:
            return begin + sample.message
        if self._raw:
            return f"{begin}{sample.message} {sample.prefix}"
        turn = [{"role": "user", "content": sample.message}]
        text = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return text + sample.prefix

    def decode(self, tokens):
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


def make(task_name, length, index, texts, tokenizer, limit=None):
    """The largest prompt of the task that leaves room for its answer within `length` tokens."""
    task = TASKS[task_name]
    if limit is not None and length > limit:
        raise PromptError(f"length: the model takes {limit} tokens at most, got {length}")
    room = length - task.new_tokens

    def at(size):
        sample = task.build(rng_for(SEED, task_name, length, index), size, texts)
        return sample, tokenizer.encode(tokenizer.prompt(sample))

    low, high = task.least, None
    sample, tokens = at(low)
    if len(tokens) > room:
        raise PromptError(f"length: {task_name} needs more than {length} tokens")
    best = sample, tokens
    size = max(low + 1, int(low * room / len(tokens)))
    # Tokens grow about in proportion to the size: a few steps of the secant, then it is settled.
    for _ in range(12):
        sample, tokens = at(size)
        if len(tokens) <= room:
            low, best = size, (sample, tokens)
            if room - len(tokens) < 0.01 * room:
                break
        else:
            high = size
        guess = int(size * room / len(tokens))
        size = min(max(guess, low + 1), (high or guess + 2) - 1)
        if size <= low:
            break
    sample, tokens = best
    answer = tokenizer.encode(sample.answer)[: task.new_tokens]
    return Prompt(
        task_name, length, index, tuple(tokens), tuple(answer), sample.refs, task.new_tokens
    )


def _open(path, mode):
    return (gzip.open if str(path).endswith(".gz") else open)(path, mode, encoding="utf-8")


def save(path, prompts):
    """Writes prompts as JSON lines (compressed where the name ends in .gz) as they come."""
    with _open(path, "wt") as file:
        for prompt in prompts:
            file.write(json.dumps(dataclasses.asdict(prompt)) + "\n")


def load(path):
    """The prompts of a file that save() wrote, in its order."""
    found = []
    with _open(path, "rt") as file:
        for number, line in enumerate(file, 1):
            try:
                fields = json.loads(line)
                for name in ("tokens", "answer_tokens", "refs"):
                    fields[name] = tuple(fields[name])
                found.append(Prompt(**fields))
            except (TypeError, KeyError, json.JSONDecodeError) as error:
                raise PromptError(f"{path}:{number}: not a prompt: {error}") from error
    return found
