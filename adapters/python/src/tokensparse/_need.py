# SPDX-License-Identifier: MIT
"""One clear sentence when an optional engine is missing or too old."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from types import ModuleType


class TooOld(ImportError):
    """The package is there, but from before what this one needs."""


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def need(module: str, at_least: str, why: str) -> ModuleType:
    """Imports an optional package.

    Raises:
      ImportError: it is missing, or older than `at_least`; says what to install.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(
            f"{why} needs {module} {at_least} or newer, which is not installed: "
            f"pip install '{module}>={at_least}'"
        ) from None
    version = getattr(found, "__version__", None) or metadata.version(module)
    if _release(version) < _release(at_least):
        raise TooOld(
            f"{why} needs {module} {at_least} or newer, found {version}: "
            f"pip install '{module}>={at_least}'"
        )
    return found
