#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Links of the documents lead somewhere, and the paths they name in `code` exist.

Checked are relative links [text](path), with #anchors against the target's headings, and code
spans that look like a path of this tree (they begin with one of its folders)."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(text):
    """The ids that a forge gives the headings of a document."""
    found = set()
    for heading in re.findall(r"^#+\s+(.*)$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        found.add(plain.replace(" ", "-"))
    return found


def link_faults(document, text):
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists():
            yield f"link to {target}: no such file"
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            yield f"link to {target}: no such heading"


def path_faults(text, folders):
    for span in CODE.findall(text):
        word = span.split()[0] if span.split() else ""
        first = word.split("/")[0]
        if "/" not in word or first not in folders or re.search(r"[<>*{}$]|\.\.\.|[A-Z]{3}", word):
            continue
        if not (ROOT / word.split("#")[0].rstrip(".,:;")).exists():
            yield f"names `{word}`: no such file"


def main():
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    folders = {name.split("/")[0] for name in tracked if "/" in name}
    documents = [ROOT / name for name in tracked if name.endswith(".md") and (ROOT / name).exists()]
    faults = []
    for document in documents:
        text = document.read_text(encoding="utf-8")
        prose = FENCE.sub("", text)
        for fault in [*link_faults(document, prose), *path_faults(prose, folders)]:
            faults.append(f"{document.relative_to(ROOT)}: {fault}")
    print("\n".join(faults) if faults else f"{len(documents)} documents, every link leads somewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
