#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Counts test cases in ctest's JUnit report: prints "PASSED FAILED SKIPPED".

A ctest entry is often a whole GoogleTest or unittest program; its own summary says how many cases
it ran. An entry without such a summary counts as one, and a failed one as at least one failure.
usage: count_tests.py REPORT.xml
"""

import re
import sys
import xml.etree.ElementTree as ElementTree


def number(pattern, text):
    found = re.search(pattern, text, re.MULTILINE)
    return int(found.group(1)) if found else 0


def count(entry):
    """(passed, failed, skipped) of one ctest entry."""
    text = entry.findtext("system-out") or ""
    status = entry.get("status")
    if status == "notrun" or status == "disabled":
        return (0, 0, 1)
    if re.search(r"^\[=+\] \d+ tests? from .* ran\.", text, re.MULTILINE):
        passed = number(r"^\[  PASSED  \] (\d+) test", text)
        skipped = number(r"^\[  SKIPPED \] (\d+) test", text)
        failed = number(r"^\[  FAILED  \] (\d+) test", text)
    elif re.search(r"^Ran \d+ tests? in ", text, re.MULTILINE):
        skipped = number(r"skipped=(\d+)", text)
        failed = number(r"failures=(\d+)", text) + number(r"errors=(\d+)", text)
        passed = number(r"^Ran (\d+) tests? in ", text) - skipped - failed
    else:
        passed, failed, skipped = (1, 0, 0) if status == "run" else (0, 1, 0)
    if status == "fail" and failed == 0:
        failed = 1  # crashed, timed out or complained after its summary
    return (passed, failed, skipped)


def main():
    totals = [0, 0, 0]
    for entry in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
        totals = [total + part for total, part in zip(totals, count(entry))]
    print(*totals)


if __name__ == "__main__":
    main()
