# SPDX-License-Identifier: MIT
"""The tasks: RULER's that need no download (arXiv 2404.06654), two on code, and plain text.

A task makes a Sample from a random generator and a size; the size is whatever its filler is made of
(sentences, needles, list entries), and lab.prompts finds the largest that fits a length. Everything
follows from the seed: the same seed, size and texts give the same sample.
"""
import dataclasses
import random
import string
import uuid
from collections.abc import Callable

from lab.texts import TextError, functions

ADJECTIVES = (
    "ancient bitter bold brave breezy bright brisk broken calm clever cloudy coarse crimson crisp"
    " curious damp daring distant dusty eager early faint fancy fierce fragile frozen gentle giant"
    " glossy golden graceful grand hidden hollow humble icy jolly keen lively lonely loyal lucky"
    " mellow mighty modest narrow nimble noble noisy odd pale patient polite proud quick quiet rapid"
    " rare rigid rough rusty shallow sharp shiny silent sleepy slender smooth solemn solid spare"
    " steady steep stormy strange subtle sunny swift tame tender thin tidy tiny vague vast vivid"
    " warm wary wild wise witty young zesty"
).split()
NOUNS = (
    "anchor apron arrow badge barrel basin basket beacon bell bench blanket bottle branch bridge"
    " bucket button cabin candle canyon carpet castle cellar chapel chimney circle cliff clock cloud"
    " coin compass copper cradle crystal cup curtain desk diamond dragon drum engine fabric falcon"
    " feather fence field flute forest fountain garden gate glacier hammer harbor helmet hill island"
    " jacket kettle key ladder lantern lemon lever magnet map marble market meadow mirror mountain"
    " needle ocean orchard paddle pebble pillow planet pocket rabbit ribbon river rocket saddle"
    " sail shelf shovel spoon stone temple ticket tower tunnel valley vessel violin wagon walnut"
    " window"
).split()
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question before it is cut to a length."""

    message: str  # what the user says
    prefix: str  # how the answer begins; put behind the assistant's header, as RULER does
    refs: tuple  # what a right answer contains
    answer: str  # what is teacher-forced behind the prefix
    raw: bool = False  # no chat template: plain text goes on


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    new_tokens: int  # room for the answer, RULER's
    build: Callable  # (random.Random, size, Texts) -> Sample
    scored: bool = True  # has right answers; else only its loss counts
    least: int = 4  # the smallest size that makes a question


def _sentence(kind, key, value):
    return f"One of the special magic {kind}s for {key} is: {value}."


def _key(rng):
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def _value(rng, kind):
    if kind == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return str(rng.randint(1000000, 9999999))


def _distinct(count, make):
    found = {}
    while len(found) < count:
        found.setdefault(make())
    return list(found)


def _hide(rng, filler, needles):
    """The needles among the filler, at depths drawn from 40 even ones, as RULER places them."""
    depths = sorted(rng.sample(range(40), len(needles)))
    at = [round(depth / 39 * len(filler)) for depth in depths]
    parts, done = [], 0
    for position, needle in zip(at, rng.sample(needles, len(needles))):
        parts += filler[done:position] + [needle]
        done = position
    return parts + filler[done:]


def _run_of(rng, items, size):
    """`size` items in a row from a random start; begins again where they end."""
    start = rng.randrange(len(items))
    return [items[(start + i) % len(items)] for i in range(size)]


def _niah(haystack, value="number", keys=1, values=1, asked=1):
    def build(rng, size, texts):
        kind = value
        if haystack == "needles":  # every sentence is a needle, one of them is asked for
            make = (lambda: _value(rng, "uuid")) if kind == "uuid" else (
                lambda: f"{_key(rng)}-{rng.randint(0, 99999)}"
            )
            names = _distinct(size + 1, make)
            pairs = [(name, _value(rng, kind)) for name in names]
            sentences = [_sentence(kind, *pair) for pair in pairs]
            wanted = pairs[:1]
            body = _hide(rng, sentences[1:], sentences[:1])
        else:
            names = _distinct(keys, lambda: _key(rng))
            pairs = [(name, _value(rng, kind)) for name in names for _ in range(values)]
            filler = [NOISE] * size if haystack == "noise" else _run_of(rng, texts.sentences, size)
            body = _hide(rng, filler, [_sentence(kind, *pair) for pair in pairs])
            wanted = pairs[: asked * values]
        several = len(wanted) > 1
        subject = ", ".join(dict.fromkeys(name for name, _ in wanted))
        noun = f"special magic {kind}{'s' if several else ''}"
        message = (
            f"Some special magic {kind}s are hidden within the following text. Make sure to memorize"
            f" it. I will quiz you about the {kind}s afterwards.\n\n{' '.join(body)}\n\n"
            f"What {'are all the' if several else 'is the'} {noun} for {subject} mentioned in the"
            " provided text?"
        )
        verb = "are" if several else "is"
        prefix = f"The {noun} for {subject} mentioned in the provided text {verb}"
        refs = tuple(text for _, text in wanted)
        return Sample(message, prefix, refs, " " + ", ".join(refs))

    return build


def _chain(rng, taken):
    make = lambda: "".join(rng.choice(string.ascii_uppercase) for _ in range(5))
    names = [name for name in _distinct(5 + len(taken), make) if name not in taken][:5]
    value = str(rng.randint(10000, 99999))
    steps = [f"VAR {names[0]} = {value}."]
    steps += [f"VAR {to} = VAR {source}." for source, to in zip(names, names[1:])]
    return names, value, steps


def _variable_tracking(rng, size, texts):
    del texts

    def ask(filler, names, value, steps):
        # The order of a chain is kept: a variable is assigned before it is read.
        at = sorted(rng.sample(range(filler + 1), min(len(steps), filler + 1)))
        at += [filler] * (len(steps) - len(at))
        lines = [NOISE] * filler
        for shift, (position, step) in enumerate(zip(at, steps)):
            lines.insert(position + shift, step)
        text = "\n".join(lines)
        question = (
            "Memorize and track the chain(s) of variable assignment hidden in the following text."
            f"\n\n{text}\nQuestion: Find all variables that are assigned the value {value} in the"
            " text above."
        )
        prefix = (
            "Answer: According to the chain(s) of variable assignment in the text above, 5 variables"
            f" are assigned the value {value}, they are:"
        )
        return question, prefix, " " + " ".join(names)

    example = _chain(rng, ())
    question, prefix, answer = ask(5, *example)
    shown = f"{question}\n{prefix}{answer}"
    chain = _chain(rng, example[0])
    question, prefix, answer = ask(size, *chain)
    return Sample(f"{shown}\n\n{question}", prefix, tuple(chain[0]), answer)


def _common_words(rng, size, texts):
    def ask(common, uncommon, often, seldom):
        words = common * often + uncommon * seldom
        rng.shuffle(words)
        listed = " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))
        question = (
            "Below is a numbered list of words. In these words, some appear more often than others."
            f" Memorize the ones that appear most often.\n{listed}\nQuestion: What are the 10 most"
            " common words in the above list?"
        )
        prefix = "Answer: The top 10 words that appear most often in the list are:"
        return question, prefix, " " + " ".join(f"{i}. {w}" for i, w in enumerate(common, 1))

    if size + 40 > len(texts.vocabulary):
        raise TextError(
            f"texts: cwe at this length needs {size + 40} different words, the texts have"
            f" {len(texts.vocabulary)}; name more files"
        )
    words = rng.sample(texts.vocabulary, size + 40)
    often, seldom = (30, 3) if size > 120 else (6, 1)  # RULER's, and its for short lists
    shown = ask(words[:10], words[10:20], 6, 1)
    common = words[20:30]
    question, prefix, answer = ask(common, words[30:], often, seldom)
    message = f"{shown[0]} {shown[1]}{shown[2]}\n\n{question}"
    return Sample(message, prefix, tuple(common), answer)


def _frequent_words(rng, size, texts):
    del texts
    count = max(4, size // 50)  # different words
    words = _distinct(count, lambda: "".join(rng.choice(string.ascii_lowercase) for _ in range(6)))
    total = sum(k**-2.0 for k in range(1, count + 1))
    coded = []
    for k, word in enumerate(words, 1):
        coded += ["..." if k == 1 else word] * max(1, round(size * k**-2.0 / total))
    rng.shuffle(coded)
    message = (
        "Read the following coded text and track the frequency of each coded word. Find the three"
        f" most frequently appeared coded words. {' '.join(coded)}\nQuestion: Do not provide any"
        " explanation. Please ignore the dots '....'. What are the three most frequently appeared"
        " words in the above coded text?"
    )
    prefix = (
        "Answer: According to the coded text above, the three most frequently appeared words are:"
    )
    refs = tuple(words[1:4])
    return Sample(message, prefix, refs, " " + " ".join(refs))


def _code_with_a_function(rng, size, texts):
    """`size` lines of code, and a function defined in them once: its name and its parameters."""
    for _ in range(16):
        lines, wants = [], {}
        for module in rng.sample(texts.modules, len(texts.modules)):
            lines += [f"# file: {module.name}", *module.source.splitlines()][: size - len(lines)]
            if len(lines) >= size:
                break
        text = "\n".join(lines)
        for name, parameters in functions(text):
            wants.setdefault(name, []).append(parameters)
        found = sorted(
            (name, parameters[0])
            for name, parameters in wants.items()
            if len(parameters) == 1 and 2 <= len(parameters[0]) <= 5 and text.count(name) < 4
        )
        if found:
            return text, *rng.choice(found)
    raise TextError(f"code tasks: no function to ask for in {size} lines")


def _code_parameters(rng, size, texts):
    text, name, parameters = _code_with_a_function(rng, size, texts)
    message = (
        f"Read this code.\n\n{text}\n\nWhat are the parameters of the function {name}, in order,"
        " without self? Answer with their names."
    )
    answer = ", ".join(parameters)
    return Sample(message, f"The parameters of {name} are:", (answer,), " " + answer)


def _code_call(rng, size, texts):
    text, name, parameters = _code_with_a_function(rng, size, texts)
    message = (
        f"Read this code.\n\n{text}\n\nCall the function {name} with every parameter by keyword, from"
        " variables of the same names, in the order of its definition, without self."
    )
    call = ", ".join(f"{parameter}={parameter}" for parameter in parameters)
    return Sample(message, f"```python\nresult = {name}(", (call,), call + ")")


def _continuation(rng, size, texts):
    body = _run_of(rng, texts.sentences, size + 12)
    text = " ".join(body[size:])
    return Sample(" ".join(body[:size]), "", (), " " + text, raw=True)


TASKS = {
    task.name: task
    for task in (
        Task("niah_single_1", 128, _niah("noise")),
        Task("niah_single_2", 128, _niah("prose")),
        Task("niah_single_3", 128, _niah("prose", value="uuid")),
        Task("niah_multikey_1", 128, _niah("prose", keys=4)),
        Task("niah_multikey_2", 128, _niah("needles")),
        Task("niah_multikey_3", 128, _niah("needles", value="uuid")),
        Task("niah_multivalue", 128, _niah("prose", values=4)),
        Task("niah_multiquery", 128, _niah("prose", keys=4, asked=4)),
        Task("vt", 30, _variable_tracking),
        Task("cwe", 120, _common_words),
        Task("fwe", 50, _frequent_words),
        Task("code_parameters", 48, _code_parameters, least=200),
        Task("code_call", 64, _code_call, least=200),
        Task("continuation", 256, _continuation, scored=False),
    )
}


def score(refs, text):
    """RULER's string_match_all: share of the references contained in the text, case ignored."""
    if not refs:
        return None
    text = text.lower()
    return sum(ref.lower() in text for ref in refs) / len(refs)


def rng_for(seed, task, length, index):
    """A generator that depends on nothing but these, on every machine and Python."""
    return random.Random(f"{seed}/{task}/{length}/{index}")
