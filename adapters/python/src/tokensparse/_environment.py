# SPDX-License-Identifier: MIT
"""TOKENSPARSE_<NAME>: what the environment says. Names and meaning are those of the llama.cpp plugin."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

from ._library import InvalidArgument
from ._recommended import RECOMMENDED, recommended
from .setting import RENAMED, Setting, TokensparseWarning, fail, parse_layers, read_setting

SERVE_ROWS = 64  # query rows from which a call is ours, exact or sparse
# Query rows times keys from which an exact call on the CPU is, too: with fewer our call costs as much
# as it saves. sdpa takes 141 us at 64 tokens, 458 at 128, we 138 and 223; vLLM's own kernel 71 us at 64
# tokens, 164 at 128, 454 at 256, we 183 and 361 at the last two (a layer of the 0.5B, 2 cores AMD EPYC
# Zen 5, 2026-11-27).
SERVE_PAIRS = {"transformers": 128 * 128, "vllm": 224 * 224}

_PREFIX = "TOKENSPARSE_"
_KEYS = [f.name for f in dataclasses.fields(Setting) if f.name not in ("name", "model", "accuracy")]
_ASK = ("setting", "profile", "layers", "sparse_layers", "coverage", "keep", "blocks")
# What other parts of the project, or other places of this package, read.
_OTHERS = (
    *("serve_rows", "method", "threads", "backend", "library", "disable", "config", "linear"),
    *("memory", "verify", "summary", "verbose", "onednn_library", "cache", "model", "plugin"),
    *("program", "isa", "jobs", "peer_python", "llama_cpp_dir"),
)


def default_backend() -> str:
    """Backend of host arrays: TOKENSPARSE_BACKEND ("cpu" or "ref"), else "cpu"."""
    backend = os.environ.get("TOKENSPARSE_BACKEND") or "cpu"
    if backend not in ("cpu", "ref"):
        raise fail("TOKENSPARSE_BACKEND", "cpu or ref", backend)
    return backend


def threads_from_environment() -> int:
    """TOKENSPARSE_THREADS; 0 where it is not set."""
    text = os.environ.get("TOKENSPARSE_THREADS")
    threads = _number("TOKENSPARSE_THREADS", text, int) if text else 0
    if threads < 0:
        raise fail("TOKENSPARSE_THREADS", ">= 0", threads)
    return threads


def serve_rows() -> int:
    """TOKENSPARSE_SERVE_ROWS: calls with fewer query rows go to the stock kernel."""
    text = os.environ.get("TOKENSPARSE_SERVE_ROWS")
    rows = _number("TOKENSPARSE_SERVE_ROWS", text, int) if text else SERVE_ROWS
    if rows < 2:
        raise fail("TOKENSPARSE_SERVE_ROWS", ">= 2", rows)
    return rows


def serve_pairs(host: str) -> int:
    """SERVE_PAIRS of a host; 0 where TOKENSPARSE_SERVE_ROWS says from where calls are ours."""
    return 0 if os.environ.get("TOKENSPARSE_SERVE_ROWS") else SERVE_PAIRS[host]


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise fail(name, "a whole number" if kind is int else "a number", text) from None


def variables_in(environ: Mapping[str, str]) -> list[str]:
    """The variables that say how a model is run."""
    wanted = {_PREFIX + name.upper() for name in (*_KEYS, *_ASK, "serve_rows")}
    return [name for name in environ if name in wanted]


def _check_names(environ: Mapping[str, str]) -> None:
    for variable in environ:
        name = variable.removeprefix(_PREFIX).lower()
        if not variable.startswith(_PREFIX) or name in (*_KEYS, *_ASK, *_OTHERS):
            continue
        if name in RENAMED:
            raise InvalidArgument(f"{variable}: is now {_PREFIX}{RENAMED[name].upper()}")
        warnings.warn(
            f"there is no setting named {variable}; it does nothing",
            TokensparseWarning,
            stacklevel=3,
        )


def setting_from_environment(
    environ: Mapping[str, str] | None = None, config: Any = None
) -> Setting:
    """What the environment asks for: exact attention unless one of TOKENSPARSE_SETTING, COVERAGE,
    KEEP, BLOCKS, LAYERS and PROFILE is set; what the others leave open is the built-in setting's.

    Args:
      environ: instead of the process's.
      config: of the model, for TOKENSPARSE_SETTING=recommended; built-in where nothing was measured.

    Raises:
      InvalidArgument: names the variable or the file, the key, the rule and the value.
    """
    environ = os.environ if environ is None else environ
    _check_names(environ)
    names = (*_KEYS, *_ASK)
    given = {n: text for n in names if (text := environ.get(_PREFIX + n.upper(), "").strip())}
    setting = Setting()
    if given.get("setting") == RECOMMENDED:
        setting = (recommended(config) if config is not None else None) or setting
    elif "setting" in given:
        setting = _file(given, "setting")
    changes: dict[str, Any] = {}
    if "profile" in given:
        profile = _file(given, "profile")
        changes = {"layers": profile.layers, "model": profile.model}
    for name in ("sparse_layers", "layers"):
        if name in given:
            changes["layers"] = parse_layers(given[name], _PREFIX + name.upper())
    for name in _KEYS:
        if name in given and name != "layers":
            kind = type(getattr(Setting, name, ""))  # blocks are text, too
            variable = _PREFIX + name.upper()
            value = given[name] if kind is str else _number(variable, given[name], kind)
            try:
                setting = setting.changed(**{name: value})
            except InvalidArgument as error:
                raise InvalidArgument(str(error).replace(name, variable, 1)) from None
    setting = setting.changed(**changes)
    return setting if set(_ASK) & set(given) else setting.exact


def _file(given: Mapping[str, str], name: str) -> Setting:
    try:
        return read_setting(given[name])
    except InvalidArgument as error:
        raise InvalidArgument(f"{_PREFIX}{name.upper()}: {error}") from None
