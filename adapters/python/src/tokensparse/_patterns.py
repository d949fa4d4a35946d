# SPDX-License-Identifier: MIT
"""The block patterns of a setting: "xattention,threshold=0.8", or a dict of "pattern" and parameters.

Parameters have the names that the methods' authors and OpenVINO give them; what is not given is the
authors' number.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ._errors import fail
from ._library import PATTERNS, SHARES, InvalidArgument, Pattern, lib

_MANY = 1 << 30
_ALL = tuple(name for name in PATTERNS if name != "none")


@dataclass(frozen=True)
class _Rule:
    """A parameter: the patterns that have it, and low <= x <= high."""

    patterns: tuple[str, ...]
    low: float
    high: float
    whole: bool = False
    above_low: bool = False
    multiple: int = 1
    aliases: tuple[str, ...] = ()

    def takes(self, value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        if not self.low <= value <= self.high or (self.above_low and value == self.low):
            return False
        return not self.whole or value % self.multiple == 0

    def __str__(self) -> str:
        text = "an integer " if self.whole else "a number "
        between = f"between {self.low} and {self.high}"
        text += f"above {self.low} and at most {self.high}" if self.above_low else between
        return text + (f", a multiple of {self.multiple}" if self.multiple > 1 else "")


_RULES = {
    "threshold": _Rule(
        ("xattention", "pooled"), 0, 1, above_low=True, aliases=("xattention_threshold",)
    ),
    "stride": _Rule(("xattention",), 2, 64, whole=True, aliases=("xattention_stride",)),
    "gamma": _Rule(("flexprefill",), 0, 1, above_low=True),
    "tau": _Rule(("flexprefill",), 0, 1),
    "min_budget": _Rule(("flexprefill",), 0, _MANY, whole=True),
    "vertical": _Rule(("minference",), 1, _MANY, whole=True, aliases=("vertical_size",)),
    "slash": _Rule(("minference",), 1, _MANY, whole=True, aliases=("slash_size",)),
    "alpha": _Rule(("flash",), 0, 1),
    "block": _Rule(
        _ALL, 16, 512, whole=True, multiple=16, aliases=("block_size", "xattention_block_size")
    ),
    "sink_blocks": _Rule(_ALL, 0, _MANY, whole=True),
    "local_blocks": _Rule(_ALL, 0, _MANY, whole=True),
    "last_blocks": _Rule(_ALL, 0, _MANY, whole=True),
}


def _canonical(pattern: str, name: str) -> str | None:
    """What a name counts as; None where the pattern has no such parameter."""
    if name == "share":
        return name
    for key, rule in _RULES.items():
        aliases = [a for a in rule.aliases if pattern == "xattention" or "xatt" not in a]
        if pattern in rule.patterns and name in (key, *aliases):
            return key
    return None


def parameters_of(pattern: str) -> tuple[str, ...]:
    return (*(name for name, rule in _RULES.items() if pattern in rule.patterns), "share")


def not_a_parameter(key: str, pattern: str, value: Any) -> InvalidArgument:
    return fail(key, f"a parameter of {pattern} ({', '.join(parameters_of(pattern))})", value)


def _check(key: str, pattern: str, name: str, value: Any) -> str:
    """The parameter's own name.

    Raises:
      InvalidArgument: names key, rule and value.
    """
    known = _canonical(pattern, name)
    if known is None:
        raise not_a_parameter(f"{key}.{name}", pattern, value)
    if known == "share":
        if not isinstance(value, str) or value not in SHARES:
            raise fail(f"{key}.share", "one of " + ", ".join(SHARES), value)
    elif not _RULES[known].takes(value):
        raise fail(f"{key}.{name}", str(_RULES[known]), value)
    return known


def own_parameters(pattern: str) -> dict[str, Any]:
    """What the authors of a pattern publish."""
    struct = Pattern()
    lib.tsp_pattern_init(struct, PATTERNS[pattern])
    own = {n: getattr(struct, n) for n, rule in _RULES.items() if pattern in rule.patterns}
    return {**own, "share": list(SHARES)[struct.share]}


def _same(value: Any, own: Any) -> bool:
    """As the library keeps it: real numbers are floats of 32 bits."""
    return value == own or (isinstance(own, float) and ctypes.c_float(value).value == own)


def _from_text(text: str, key: str) -> dict[str, Any]:
    name, *parts = (part.strip(" \t") for part in text.split(","))
    found: dict[str, Any] = {"pattern": name}
    for part in parts:
        name, equals, value = (word.strip(" \t") for word in part.partition("="))
        if not equals:
            raise fail(key, "a pattern, and name=value after commas", text)
        if name in found:
            raise InvalidArgument(f"{key}.{name}: must be given once, is given twice")
        try:
            found[name] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            found[name] = value
    return found


def make_blocks(value: Any, key: str = "blocks") -> dict[str, Any]:
    """A pattern with what differs from its authors' numbers; {} = none.

    Args:
      value: text, "none" or "xattention,threshold=0.8"; or a dict of "pattern" and parameters.
      key: what errors call it.

    Raises:
      InvalidArgument: names the key, the rule and the value.
    """
    if value == {}:
        return {}
    found = _from_text(value, key) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise fail(key, "a pattern or an object", value)
    pattern = found.get("pattern")
    if not isinstance(pattern, str) or pattern not in PATTERNS:
        raise fail(f"{key}.pattern", "one of " + ", ".join(PATTERNS), pattern)
    made: dict[str, Any] = {}
    for name, number in found.items():
        if name == "pattern":
            continue
        if pattern == "none":
            raise fail(f"{key}.{name}", "left out with none", number)
        known = _check(key, pattern, name, number)
        if known in made:
            raise InvalidArgument(f"{key}.{name}: must be given once, is given twice")
        made[known] = int(number) if known in _RULES and _RULES[known].whole else number
    if pattern == "none":
        return {}
    own = own_parameters(pattern)
    every = {**own, **made}
    if pattern == "xattention" and every["block"] % every["stride"]:
        raise fail(f"{key}.stride", f"a divisor of block ({every['block']})", every["stride"])
    return {"pattern": pattern, **{n: v for n, v in made.items() if not _same(v, own[n])}}


def blocks_text(blocks: dict[str, Any]) -> str:
    """What `make_blocks` takes, and the program and the plugin."""
    if not blocks:
        return "none"
    named = (f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}" for n, v in blocks.items())
    return ",".join((blocks["pattern"], *(text for text in named if not text.startswith("pattern="))))
