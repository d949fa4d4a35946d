#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a document quotes is what the tests build and run.

A quote is a marker and the fenced block after it:
    <!-- snippet: examples/prefill.c#prefill -->
The block must equal the lines of that file between `[prefill]` and `[/prefill]` comments, less
their common indent. usage: check_snippets.py [--fix]"""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUOTE = re.compile(
    r"(<!-- snippet: (?P<file>\S+)#(?P<name>[\w-]+) -->\n```\w*\n)(?P<body>.*?)(?P<end>^```$)",
    re.MULTILINE | re.DOTALL,
)


def snippet(file, name):
    """The marked lines of a file; ends the program where they are missing."""
    path = ROOT / file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(
        rf"^[^\n]*\[{re.escape(name)}\][^\n]*\n(.*?)^[^\n]*\[/{re.escape(name)}\]",
        text,
        re.MULTILINE | re.DOTALL,
    )
    if not found:
        sys.exit(f"{file}: has no lines between [{name}] and [/{name}]")
    return textwrap.dedent(found.group(1))


def main():
    fix = sys.argv[1:] == ["--fix"]
    names = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    faults, quotes = [], 0
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8")
        found = list(QUOTE.finditer(text))
        quotes += len(found)
        if len(found) != text.count("<!-- snippet:"):
            faults.append(f"{name}: a snippet marker is not followed by a fenced block")
        for quote in found:
            if quote["body"] != snippet(quote["file"], quote["name"]):
                faults.append(f"{name}: differs from {quote['file']}#{quote['name']}")
        if fix:
            text = QUOTE.sub(lambda q: q[1] + snippet(q["file"], q["name"]) + q["end"], text)
            (ROOT / name).write_text(text, encoding="utf-8")
    if faults and not fix:
        print("\n".join(faults) + "\n(scripts/check_snippets.py --fix brings the quotes up to date)")
        return 1
    print(f"{quotes} quoted snippets, each as the tests run it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
