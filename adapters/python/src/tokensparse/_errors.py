# SPDX-License-Identifier: MIT
"""How a setting's keys are refused."""

from __future__ import annotations

from typing import Any

from ._library import InvalidArgument


def fail(key: str, rule: str, value: Any) -> InvalidArgument:
    """The error of a key whose value breaks its rule."""
    shown = repr(value)
    return InvalidArgument(f"{key}: must be {rule}, is {shown[:60] + (shown[60:] and '...')}")
