# SPDX-License-Identifier: MIT
"""Measurements as JSON lines: a header that says of what, then one line an answer.

A run that was interrupted goes on where it stopped: what stands in the file is not asked again. A
last line that was cut short is dropped. A file of another model, engine or format is refused.
"""
import datetime
import gzip
import json
import pathlib

FORMAT = "tokensparse lab 1"


class ResultsError(ValueError):
    """A results file that cannot be used."""


def load(path, **how):
    """What a file of JSON holds."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"), **how)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: not JSON: {error}") from error


def read(path):
    """(header, rows) of a results file, and whether its last line was cut short."""
    content = pathlib.Path(path).read_bytes()
    content = gzip.decompress(content) if str(path).endswith(".gz") else content
    lines = content.decode("utf-8").split("\n")
    complete, rest = lines[:-1], lines[-1]  # a whole line ends with a newline
    rows = []
    for number, line in enumerate(complete, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ResultsError(f"{path}:{number}: not JSON: {error}") from error
    if not rows or rows[0].get("format") != FORMAT:
        raise ResultsError(f'{path}: must begin with a line of format "{FORMAT}"')
    return rows[0], rows[1:], bool(rest)


class Store:
    """Appends to a results file, and knows what it has."""

    def __init__(self, path, subject):
        """subject: dict that says what is measured (model, engine, device); must match the file's."""
        self.path = pathlib.Path(path)
        self._done = set()
        if self.path.exists() and self.path.stat().st_size:
            header, rows, cut = read(self.path)
            for key, value in subject.items():
                if header.get(key) != value:
                    raise ResultsError(
                        f"{path}: holds results of {key} {header.get(key)!r}, this run is of"
                        f" {value!r}; name another file"
                    )
            self._done = {(row["prompt"], row["setting"]) for row in rows}
            if cut:
                whole = "".join(json.dumps(row) + "\n" for row in [header, *rows])
                self.path.write_text(whole, encoding="utf-8")
            self._file = self.path.open("a", encoding="utf-8")
        else:
            self._file = self.path.open("w", encoding="utf-8")
            today = datetime.date.today().isoformat()
            self._write({"format": FORMAT, **subject, "date": today})

    def _write(self, row):
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def has(self, prompt, setting):
        return (prompt, setting) in self._done

    def add(self, row):
        self._write(row)
        self._done.add((row["prompt"], row["setting"]))

    def close(self):
        self._file.close()
