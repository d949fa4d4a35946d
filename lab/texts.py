# SPDX-License-Identifier: MIT
"""Text for haystacks: licences and documentation that a machine has, or what the user names."""
import pathlib
import re
import sysconfig
from typing import NamedTuple

LICENCES = pathlib.Path("/usr/share/common-licenses")


class TextError(ValueError):
    """There is not enough text for what was asked."""


def _licences():
    if not LICENCES.is_dir():
        return []
    files = sorted(file for file in LICENCES.iterdir() if file.is_file() and not file.is_symlink())
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def _python_manual():
    from pydoc_data import topics

    return [topics.topics[name] for name in sorted(topics.topics)]


class Texts:
    """What haystacks are made of, read once.

    files: prose to use instead of the licences and the Python manual of this machine.
    code: folder of Python modules to use instead of this machine's standard library.
    """

    def __init__(self, files=(), code=None):
        self._code = pathlib.Path(code or sysconfig.get_path("stdlib"))
        parts = [pathlib.Path(file).read_text(encoding="utf-8", errors="replace") for file in files]
        parts = parts or _licences() + _python_manual()
        self.prose = re.sub(r"\s+", " ", " ".join(parts)).strip()
        if len(self.prose) < 10000:
            raise TextError(
                f"texts: must hold at least 10000 characters together, got {len(self.prose)}"
            )
        self.sentences = [s for s in re.split(r"(?<=[.!?]) ", self.prose) if len(s) > 8]
        self._vocabulary = None
        self._modules = None

    @property
    def vocabulary(self):
        """Plain lower-case words of 4 to 12 letters, sorted: what cwe counts."""
        if self._vocabulary is None:
            words = set(re.findall(r"\b[a-z]{4,12}\b", self.prose))
            for module in self.modules:
                words.update(re.findall(r"\b[a-z]{4,12}\b", module.source))
            self._vocabulary = sorted(words)
        return self._vocabulary

    @property
    def modules(self):
        """The standard library's modules of one file, by name: real code for the code tasks."""
        if self._modules is None:
            files = sorted(file for file in self._code.glob("*.py") if not file.name.startswith("_"))
            if not files:
                raise TextError(f"code: must be a folder of Python modules, is {self._code}")
            self._modules = [
                Module(file.name, file.read_text(encoding="utf-8", errors="replace"))
                for file in files
            ]
        return self._modules


class Module(NamedTuple):
    name: str
    source: str


def functions(source):
    """(name, parameters without self) of every definition that stands on one line."""
    found = re.findall(r"^ *def ([a-z_][a-zA-Z0-9_]*)\(([a-zA-Z0-9_, =]*)\):$", source, re.M)
    for name, parameters in found:
        names = [parameter.split("=")[0].strip() for parameter in parameters.split(",")]
        yield name, [p for p in names if p and p not in ("self", "cls")]
