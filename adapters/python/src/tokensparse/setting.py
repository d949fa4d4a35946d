# SPDX-License-Identifier: MIT
"""How a model is run sparsely: which layers, which tokens, and when.

One schema for the program, the llama.cpp plugin and this package; as a file it is JSON,
`{"format": "tokensparse setting 1", "coverage": 0.1, ...}`. The fields of `Setting` are its keys and
their defaults the built-in setting.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ._errors import fail
from ._library import DROPPED, PRECISIONS, SHARES, InvalidArgument
from ._patterns import blocks_text, make_blocks

FORMAT = "tokensparse setting 1"
PROFILE_FORMAT = "tokensparse layer profile 1"
BUILT_IN = "built-in"  # instead of a file's name
MAX_LAYERS = 4096

_LAYER_WORDS = ("middle", "all", "none")
_MODEL_KEYS = ("name", "num_layers", "num_heads", "num_kv_heads", "head_dim")
_REAL = {"coverage": (0.0, 0.9999999), "keep": (0.0, 1.0), "long_coverage": (0.0, 0.9999999)}
_WHOLE = {
    "sink": (0, 1 << 30),
    "band": (1, 1 << 30),
    "window": (1, 1 << 20),
    "pool": (1, 1023),
    "min_tokens": (0, 1 << 30),
    "min_keys": (0, 1 << 30),
    "min_rows": (2, 1 << 20),
    "long_keys": (0, 1 << 30),
}
_WORDS = {
    "share": tuple(SHARES),
    "dropped": tuple(DROPPED),
    "precision": ("auto", *PRECISIONS),
}
RENAMED = {"sparse_layers": "layers", "min_query": "min_rows"}  # names of before


class TokensparseWarning(UserWarning):
    """Something worth knowing that did not stop the call."""


def parse_layers(text: str, name: str = "layers") -> str | tuple[int, ...]:
    """ "7-15,18,21" as (7, ..., 15, 18, 21); "middle", "all" and "none" as they are."""
    stripped = text.strip(" ")
    if stripped in _LAYER_WORDS:
        return stripped
    rule = f"middle, all, none or layers like 1-22,25, each below {MAX_LAYERS}"
    layers: set[int] = set()
    for part in stripped.split(","):
        found = re.fullmatch(r" *([0-9]+)(?:-([0-9]+))? *", part)
        if not found:
            raise fail(name, rule, text)
        low, high = int(found[1]), int(found[2] or found[1])
        if not low <= high < MAX_LAYERS:
            raise fail(name, rule, text)
        layers.update(range(low, high + 1))
    return tuple(sorted(layers))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _layer_list(key: str, value: Any, num_layers: int | None) -> str | tuple[int, ...]:
    end = num_layers or MAX_LAYERS
    rule = f"a list of layers, each at least 0 and below {end}"
    if not isinstance(value, (list, tuple, set, range)):
        raise fail(key, rule, value)
    for layer in value:
        if not _is_whole(layer) or not 0 <= layer < end:
            raise fail(key, rule, layer)
    return tuple(sorted({int(layer) for layer in value})) or "none"


def _model_numbers(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise fail("model", "an object", value)
    for name, number in value.items():
        key = f"model.{name}"
        if name not in _MODEL_KEYS:
            raise InvalidArgument(f"{key}: no such key; there are: {', '.join(_MODEL_KEYS)}")
        if name == "name":
            if not isinstance(number, str):
                raise fail(key, "text", number)
        elif not _is_whole(number) or not 1 <= number <= 1 << 20:
            raise fail(key, f"a whole number between 1 and {1 << 20}", number)
    return dict(value)


@dataclass(frozen=True)
class Setting:
    """How an adapter runs a model. `Setting()` is the built-in setting.

    Attributes:
      layers: which may leave tokens out: "middle" = every layer that attends to the whole prompt but
        the model's first and last; "all" of those; "none" = exact attention everywhere; a list of
        layers, or text like "1-22,25".
      coverage: share of the prefix attention mass that may be left out, [0, 1).
      keep: a fixed share of the tokens to keep instead, (0, 1]; 0 = `coverage` decides.
      share: who owns a set of kept tokens: "head", "kv_group" or "layer".
      dropped, sink, band: what the row of a query gets that its set left out: "zero", or "local":
        attention over the first `sink` and the last `band` keys.
      window, pool, min_tokens: the vote, see `tokensparse.prefill`.
      blocks: the block pattern by which attention runs on the kept tokens, on all with coverage = 0:
        "xattention", "flexprefill", "minference", "pooled", "flash" with its authors' numbers, or with
        others, "xattention,threshold=0.8"; also as a dict, {"pattern": "xattention", "threshold": 0.8};
        "none" = every block.
      min_keys, min_rows: fewest keys and query rows of a call that may be sparse; below, choosing
        does not pay (docs/cpu_speed.md has the measurements).
      long_keys, long_coverage: calls with at least so many keys may leave out this share instead of
        `coverage`; 0 keys = none are.
      precision: of the products on the CPU: "f32", "bf16", or "auto": that of the tensors.
      name: what the setting is called.
      model: of the model that it was made for: name, num_layers, num_heads, num_kv_heads, head_dim;
        any may be missing.
      accuracy: what the setting was measured to cost; anything.
    """

    layers: str | tuple[int, ...] = "middle"
    coverage: float = 0.1
    keep: float = 0.0
    share: str = "kv_group"
    dropped: str = "local"
    sink: int = 64
    band: int = 256
    window: int = 128
    pool: int = 7
    min_tokens: int = 1024
    blocks: str | dict[str, Any] = dataclasses.field(default_factory=dict)
    min_keys: int = 4096
    min_rows: int = 1024
    long_keys: int = 0
    long_coverage: float = 0.0
    precision: str = "auto"
    name: str = ""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    accuracy: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        for key, (low, high) in _REAL.items():
            value = getattr(self, key)
            if not isinstance(value, Real) or isinstance(value, bool) or not low <= value <= high:
                raise fail(key, "a number in [0, 1)" if high < 1 else "a number in [0, 1]", value)
            put(key, float(value))
        for key, (low, high) in _WHOLE.items():
            value = getattr(self, key)
            if not _is_whole(value) or not low <= value <= high:
                raise fail(key, f"a whole number between {low} and {high}", value)
            put(key, int(value))
        if self.pool % 2 == 0:
            raise fail("pool", "odd", self.pool)
        for key, allowed in _WORDS.items():
            value = getattr(self, key)
            if not isinstance(value, str) or value not in allowed:
                raise fail(key, "one of " + ", ".join(allowed), value)
        put("blocks", make_blocks(self.blocks))
        lists = list(SHARES).index(self.blocks.get("share", "head"))
        if self.is_choosing and lists > list(SHARES).index(self.share):
            rule = f"no wider than share ({self.share})"
            raise fail("blocks.share", rule, self.blocks["share"])
        if not isinstance(self.name, str):
            raise fail("name", "text", self.name)
        put("model", _model_numbers(self.model))
        if not isinstance(self.accuracy, dict):
            raise fail("accuracy", "an object", self.accuracy)
        layers = parse_layers(self.layers) if isinstance(self.layers, str) else self.layers
        if not isinstance(layers, str):
            layers = _layer_list("layers", layers, self.model.get("num_layers"))
        put("layers", layers)

    @property
    def is_choosing(self) -> bool:
        """Whether tokens are chosen, in the layers that may be sparse."""
        return self.coverage > 0 or self.keep > 0

    @property
    def is_sparse(self) -> bool:
        """Whether any layer may leave tokens or blocks out."""
        return self.layers != "none" and (self.is_choosing or bool(self.blocks))

    @property
    def exact(self) -> Setting:
        """The same without any sparsity."""
        return dataclasses.replace(self, layers="none")

    def coverage_of(self, k_len: int) -> float:
        """The coverage of a call whose longest sequence has so many keys."""
        return self.long_coverage if 0 < self.long_keys <= k_len else self.coverage

    def is_long_enough(self, q_len: int, k_len: int) -> bool:
        """Whether choosing tokens pays for a sequence of a call."""
        return k_len >= self.min_keys and q_len >= self.min_rows

    def __str__(self) -> str:
        if not self.is_sparse:
            return "exact attention"
        called = f" as in {self.name}" if self.name else ""
        much = f"keep {self.keep:g}" if self.keep else f"coverage {self.coverage:g}"
        if self.long_keys:
            much += f" ({self.long_coverage:g} from {self.long_keys} keys up)"
        much = much if self.is_choosing else "every token"
        much += f", blocks {blocks_text(self.blocks)}" if self.blocks else ""
        local = f" (sink {self.sink}, band {self.band})" if self.dropped == "local" else ""
        layers = self.layers if isinstance(self.layers, str) else ",".join(map(str, self.layers))
        return (
            f"sparse attention{called}, {much}, share {self.share}, dropped {self.dropped}{local}, "
            f"layers {layers}, from {self.min_keys} keys and {self.min_rows} query rows up"
        )

    @property
    def when(self) -> str:
        """For `tokensparse.prefill`. Fewer keys than are built in: the user wants tokens left out where
        the library expects no gain, too."""
        return "pays" if self.min_keys >= Setting.min_keys else "always"

    def products(self, dtype: str) -> str:
        """The precision of products of tensors of a dtype."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if dtype.endswith("bfloat16") else "f32"

    def changed(self, **changes: Any) -> Setting:
        """A copy with some keys changed.

        Raises:
          InvalidArgument: a key that is not one, or a value that breaks its rule.
        """
        _check_keys(changes)
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, Any]:
        """As in a file: `format` and what differs from the built-in setting."""
        found: dict[str, Any] = {"format": FORMAT}
        built_in = Setting()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != getattr(built_in, field.name):
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    def save(self, path: Any) -> None:
        """Writes the file that program, plugin, transformers and vLLM read."""
        Path(path).write_text(json.dumps(self.asdict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def make(cls, value: Any) -> Setting:
        """A setting from another one, a dict with its keys, the path of a file, or "built-in".

        Raises:
          InvalidArgument: names the file, the key, the rule and the value.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, dict):
            return _from_keys(value)
        return read_setting(value)


def _check_keys(keys: Any) -> None:
    known = [field.name for field in dataclasses.fields(Setting)]
    for key in keys:
        if key in RENAMED:
            raise InvalidArgument(f"{key}: is now {RENAMED[key]}")
        if key not in known:
            raise InvalidArgument(f"{key}: no such key; there are: {', '.join(sorted(known))}")


def _from_keys(found: dict[str, Any]) -> Setting:
    keys = {key: value for key, value in found.items() if key != "format"}
    if "format" in found and found["format"] != FORMAT:
        raise fail("format", repr(FORMAT), found["format"])
    _check_keys(keys)
    return Setting(**keys)


def _from_profile(found: dict[str, Any]) -> Setting:
    """A file of `tokensparse profile`, or of this package before it wrote settings."""
    model = {}
    if "layers" in found:
        model["num_layers"] = found["layers"]
    if "model" in found:
        model["name"] = found["model"]
    _model_numbers(model)
    layers = _layer_list("sparse_layers", found.get("sparse_layers"), model.get("num_layers"))
    return Setting(layers=layers, model=model)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


class _Repeated(Exception):
    """JSON leaves open which value of a key counts that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Repeated(f"{key}: must be given once, is given twice")
        found[key] = value
    return found


def read_setting(path: Any) -> Setting:
    """Reads a setting file, or a layer profile, which gives the layers alone.

    Args:
      path: of the file; "built-in" = the built-in setting.

    Raises:
      InvalidArgument: names the file, the key, the rule and the value.
    """
    if path == BUILT_IN:
        return Setting()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError, TypeError) as error:
        raise InvalidArgument(f"setting: cannot read {path} ({error})") from None
    try:
        found = json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    except _Repeated as error:
        raise InvalidArgument(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path}: must be a JSON object ({error})") from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path}: must be a JSON object, is {type(found).__name__}")
    format_of = found.get("format")
    try:
        if format_of == PROFILE_FORMAT or ("format" not in found and "sparse_layers" in found):
            return _from_profile(found)
        if format_of != FORMAT:
            raise fail("format", repr(FORMAT), format_of)
        layers = found.get("layers")
        if isinstance(layers, str) and layers not in _LAYER_WORDS:
            raise fail("layers", "middle, all, none or a list", layers)
        return _from_keys(found)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error}") from None
