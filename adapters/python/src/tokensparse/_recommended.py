# SPDX-License-Identifier: MIT
"""The measured setting for a model, found by the model's numbers: files of the folder `settings`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ._model import numbers
from .setting import Setting, read_setting

RECOMMENDED = "recommended"  # instead of a file's name


def _folder() -> Path:
    here = Path(__file__).resolve().parent
    installed = here / "settings"
    return installed if installed.is_dir() else here.parents[3] / "settings"


@functools.cache
def _measured() -> tuple[Setting, ...]:
    return tuple(read_setting(file) for file in sorted(_folder().glob("*.json")))


def recommended(config: Any) -> Setting | None:
    """The setting measured on a model with all four numbers of this config; None where there is none."""
    known = numbers(config)
    for setting in _measured():
        wanted = {key: number for key, number in setting.model.items() if key != "name"}
        if len(wanted) == 4 and wanted == known:
            return setting
    return None
