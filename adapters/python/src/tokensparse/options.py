# SPDX-License-Identifier: MIT
"""Options of the engine adapters, and where they come from: code, environment, a profile."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._library import DROPPED, PRECISIONS, SHARES, InvalidArgument


class TokensparseWarning(UserWarning):
    """Something worth knowing that did not stop the call."""


def default_backend() -> str:
    """Backend of host arrays: TOKENSPARSE_BACKEND ("cpu" or "ref"), else "cpu"."""
    backend = os.environ.get("TOKENSPARSE_BACKEND") or "cpu"
    if backend not in ("cpu", "ref"):
        raise InvalidArgument(f"TOKENSPARSE_BACKEND: must be cpu or ref, is {backend!r}")
    return backend


def threads_from_environment() -> int:
    """TOKENSPARSE_THREADS; 0 where it is not set."""
    text = os.environ.get("TOKENSPARSE_THREADS")
    threads = _number("TOKENSPARSE_THREADS", text, int) if text else 0
    if threads < 0:
        raise InvalidArgument(f"TOKENSPARSE_THREADS: must be >= 0, is {threads}")
    return threads


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InvalidArgument(f"{name}: must be {what}, is {text!r}") from None


def parse_layers(text: str, name: str = "sparse_layers") -> tuple[int, ...]:
    """ "7-15,18,21" as (7, ..., 15, 18, 21)."""
    layers: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        try:
            low = int(first)
            high = int(last) if last else low
        except ValueError:
            raise InvalidArgument(
                f"{name}: must look like 7-15,18 ('7' or '7-15' parts), is {text!r}"
            ) from None
        layers.update(range(low, high + 1))
    return tuple(sorted(layers))


# Where choosing tokens does not pay: docs/cpu_speed.md has the measurements. The llama.cpp adapter
# has the same rule.
_MIN_KEYS = 4096
_MIN_WINDOWS = 8


@dataclass(frozen=True)
class Options:
    """How an adapter runs a model.

    Attributes:
      coverage: share of the prefix attention mass a sparse layer may drop, [0, 1). 0, the
        default, is exact attention in every layer.
      keep: a fixed share of the tokens to keep in sparse layers instead, (0, 1].
      sparse_layers: the layers that may drop tokens. None = all but the first and the last, which
        is usually too many: profile the model.
      share: who owns a set of kept tokens: "head", "kv_group" or "layer".
      window, pool, min_tokens: the vote, see `tokensparse.prefill`.
      dropped, band: what a dropped query row gets.
      precision: of the products on the CPU: "f32", "bf16", or "auto": that of the tensors.
      min_query: calls with fewer query rows go to the stock kernel.
      min_keys: keys below which sparse layers attend exactly; so do calls of fewer query rows than
        8 windows: neither would gain. 0: calls of any length are sparse.
    """

    coverage: float = 0.0
    keep: float | None = None
    sparse_layers: tuple[int, ...] | None = None
    share: str = "head"
    window: int = 128
    pool: int = 7
    min_tokens: int = 1024
    dropped: str = "zero"
    band: int = 256
    precision: str = "auto"
    min_query: int = 65
    min_keys: int = _MIN_KEYS

    def __post_init__(self) -> None:
        layers = self.sparse_layers
        if isinstance(layers, str):
            layers = parse_layers(layers)
        if layers is not None:
            object.__setattr__(self, "sparse_layers", tuple(int(i) for i in layers))
        self._check("coverage", 0 <= self.coverage < 1, "in [0, 1)")
        self._check("keep", self.keep is None or 0 < self.keep <= 1, "in (0, 1] or None")
        self._check("window", self.window >= 1, ">= 1")
        self._check("pool", self.pool >= 1 and self.pool % 2 == 1, "odd and >= 1")
        self._check("min_tokens", self.min_tokens >= 0, ">= 0")
        self._check("band", self.band >= 1, ">= 1")
        self._check("min_query", self.min_query >= 2, ">= 2")
        self._check("min_keys", self.min_keys >= 0, ">= 0")
        precisions = ("auto", *PRECISIONS)
        for name, allowed in (("share", SHARES), ("dropped", DROPPED), ("precision", precisions)):
            self._check(name, getattr(self, name) in allowed, "one of " + ", ".join(allowed))

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise InvalidArgument(f"{name}: must be {rule}, is {getattr(self, name)!r}")

    @property
    def caution(self) -> str:
        """What a user should hear about these options; empty when nothing."""
        if self.sparse_layers is None and (self.coverage or self.keep):
            return (
                "sparse_layers is not set: every layer but the first and the last may drop tokens, "
                "which costs most models their accuracy; profile the model"
            )
        return ""

    def is_sparse(self, layer: int, num_layers: int | None) -> bool:
        """Whether a layer may drop tokens."""
        if self.coverage == 0 and self.keep is None:
            return False
        if self.sparse_layers is not None:
            return layer in self.sparse_layers
        return layer > 0 and (num_layers is None or layer < num_layers - 1)

    def is_long_enough(self, q_len: int, k_len: int) -> bool:
        """Whether choosing tokens pays for a sequence of a call."""
        long = k_len >= self.min_keys and q_len >= _MIN_WINDOWS * self.window
        return self.min_keys == 0 or long

    def prefill_arguments(self, sparse: bool, dtype: str) -> dict[str, Any]:
        """Keyword arguments of `tokensparse.prefill` for a layer whose q has this dtype."""
        precision = self.precision
        if precision == "auto":
            precision = "bf16" if dtype.endswith("bfloat16") else "f32"
        arguments: dict[str, Any] = {"precision": precision}
        if not sparse:
            return {**arguments, "coverage": 0.0}
        for name in ("coverage", "keep", "share", "window", "pool", "min_tokens"):
            arguments[name] = getattr(self, name)
        return {**arguments, "dropped": self.dropped, "band": self.band}

    def asdict(self) -> dict[str, Any]:
        """Only what differs from the defaults; JSON-able."""
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def make(cls, value: Options | dict[str, Any] | None) -> Options:
        """Options from a dict (of a model's config, say), or from the environment for None."""
        if value is None:
            return cls.from_environment()
        if isinstance(value, cls):
            return value
        known = {field.name for field in dataclasses.fields(cls)}
        for name in value:
            if name not in known:
                raise InvalidArgument(
                    f"{name}: no such option; there are: {', '.join(sorted(known))}"
                )
        return cls(**value)

    @classmethod
    def from_environment(cls, environ: dict[str, str] | None = None) -> Options:
        """TOKENSPARSE_COVERAGE, TOKENSPARSE_SPARSE_LAYERS ("7-15,18"), TOKENSPARSE_SHARE, ...: one
        variable an option. TOKENSPARSE_PROFILE names a JSON file with "sparse_layers"."""
        environ = dict(os.environ) if environ is None else environ
        values: dict[str, Any] = {}
        profile = environ.get("TOKENSPARSE_PROFILE")
        if profile:
            values["sparse_layers"] = read_profile(profile)
        for field in dataclasses.fields(cls):
            variable = f"TOKENSPARSE_{field.name.upper()}"
            text = environ.get(variable)
            if not text:
                continue
            if field.name == "sparse_layers":
                values[field.name] = parse_layers(text, variable)
            elif field.name in ("share", "dropped", "precision"):
                values[field.name] = text
            else:
                kind = float if field.name in ("coverage", "keep") else int
                values[field.name] = _number(variable, text, kind)
        return cls(**values)


def read_profile(path: str) -> tuple[int, ...]:
    """The sparse layers of a profile that `tokensparse profile` or `profile()` wrote."""
    try:
        found = json.loads(Path(path).read_text())["sparse_layers"]
        return tuple(int(layer) for layer in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f'TOKENSPARSE_PROFILE: must be a JSON file with a list "sparse_layers", '
            f"{path} is not ({type(error).__name__}: {error})"
        ) from None
