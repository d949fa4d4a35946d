# SPDX-License-Identifier: MIT
"""Searches the cheapest setting whose cost in accuracy stays under a limit.

Rounds of more and more prompts: after each, settings that are too costly for certain are out (the lower
end of their interval is over the limit), and so is what costs more pairs than one that has passed. A
setting passes when the upper ends of its intervals are within the limits at the last round. Coverage is
searched first, with everything else as built in; then the other options and block patterns around the best
coverage; where no coverage passes, fewer layers, and block patterns on every token.
"""
import dataclasses
import datetime
import json
import time

from lab import table

FORMAT = "tokensparse setting 1"
COVERAGES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
ROUNDS = (10, 30, 100)  # prompts a task, in all
VARIANTS = (  # one step from the best coverage, each alone
    {"layers": "all"},
    {"sink": 16},
    {"band": 128},
    {"band": 512},
    {"share": "head"},
    {"share": "layer"},
    {"blocks": {"pattern": "xattention", "threshold": 0.95, "stride": 8}},
    {"blocks": {"pattern": "xattention", "threshold": 0.9, "stride": 8}},
    {"blocks": {"pattern": "flexprefill", "gamma": 0.95}},
)

FEWER = (0.05, 0.1, 0.2)  # coverages of a third or two of the layers
BLOCKS = (  # on every token, where no coverage passes
    {"pattern": "xattention", "threshold": 0.95, "stride": 8},
    {"pattern": "flexprefill", "gamma": 0.95},
)


@dataclasses.dataclass(frozen=True)
class Limits:
    points: float = 1.0  # of answers; the upper end of what is lost
    loss: float = 0.02  # of the answer's loss


@dataclasses.dataclass(frozen=True)
class Verdict:
    passed: bool
    hopeless: bool
    why: str


def judge(line, limits):
    """What a line of the table says of a setting; of points by RULER's metric where answers were generated."""
    points = line.score or line.points
    lost = -points.low if points else 0.0  # points lost at most, by the interval
    surely_lost = -points.high if points else 0.0
    why = (
        f"pairs {line.pairs:.3f}, loss {line.loss.mean:+.3f} (at most {line.loss.high:+.3f}),"
        f" points lost at most {lost:.1f}, n {line.loss.n}"
    )
    return Verdict(
        passed=line.loss.high <= limits.loss and lost <= limits.points,
        hopeless=line.loss.low > limits.loss or surely_lost > limits.points,
        why=why,
    )


def _named(change):
    """{"band": 128} as "band 128", {"blocks": {"pattern": "xattention", "threshold": .9}} as "xattention, threshold 0.9"."""
    found = []
    for key, value in change.items():
        if key == "blocks":
            found += [value["pattern"], *(f"{k} {v:g}" for k, v in value.items() if k != "pattern")]
        else:
            found.append(f"{key} {value}")
    return ", ".join(found)


class Search:
    """ask(settings, n) measures named settings on n prompts a task and gives the table's lines.

    It stops, with what it has, when late() says so. num_layers: of the model.
    """

    def __init__(self, ask, limits=Limits(), minutes=None, rounds=ROUNDS, say=print, num_layers=0):
        self._ask, self._limits, self._rounds, self._say = ask, limits, rounds, say
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self.lines = {}
        self.out_of_time = False
        self._num_layers = num_layers

    def late(self):
        self.out_of_time = self._end is not None and time.monotonic() > self._end
        return self.out_of_time

    def _survivors(self, candidates):
        """Candidates after all rounds, cheapest first; fewer rounds when time runs out."""
        alive = dict(candidates)
        for n in self._rounds:
            if not alive or self.late():
                break
            lines = {line.setting: line for line in self._ask(alive, n)}
            self.lines.update(lines)
            for name in [name for name in alive if name in lines]:
                verdict = judge(lines[name], self._limits)
                self._say(f"n {n} a task: {name}: {verdict.why}{', out' if verdict.hopeless else ''}")
                if verdict.hopeless:
                    del alive[name]
        return sorted(alive, key=lambda name: self.lines[name].pairs if name in self.lines else 9)

    def _cheapest(self, candidates):
        for name in self._survivors(candidates):
            if name in self.lines and judge(self.lines[name], self._limits).passed:
                return name
        return None

    def undecided(self):
        """What neither passed nor is too costly for certain, cheapest first."""
        verdicts = {name: judge(line, self._limits) for name, line in self.lines.items()}
        open_ = [name for name, found in verdicts.items() if not (found.passed or found.hopeless)]
        return sorted(open_, key=lambda name: self.lines[name].pairs)

    def _fewer_layers(self):
        """Each third of the layers between the first and the last, and each two neighbours of them."""
        inner = list(range(1, self._num_layers - 1))
        cuts = [round(len(inner) * third / 3) for third in range(4)]
        found = {}
        for first, last in ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3)):
            layers = inner[cuts[first] : cuts[last]]
            if not layers:
                continue
            for coverage in FEWER:
                name = f"coverage {coverage:g}, layers {layers[0]}-{layers[-1]}"
                found[name] = {"coverage": coverage, "layers": layers}
        return found

    def run(self):
        """(name, setting) of the cheapest that passes, or None."""
        candidates = {f"coverage {c:g}": {"coverage": c} for c in COVERAGES}
        best = self._cheapest(candidates)
        if best is None:
            candidates = self._fewer_layers()
            for blocks in BLOCKS:
                candidates[_named({"blocks": blocks})] = {"coverage": 0, "layers": "all", "blocks": blocks}
            best = self._cheapest(candidates)
            return None if best is None else (best, candidates[best])
        base = candidates[best]
        around = {
            f"{best}, {_named(variant)}": {**base, **variant} for variant in VARIANTS
        }
        better = self._cheapest(around)
        if better is not None and self.lines[better].pairs < self.lines[best].pairs:
            return better, around[better]
        return best, base


def setting_file(name, setting, line, engine, tasks, lengths):
    """The setting as the program and the adapters read it, with where it was measured."""
    interval = lambda d: None if d is None else {"mean": d.mean, "low": d.low, "high": d.high}
    return {
        "format": FORMAT,
        "name": name,
        "model": engine.model,
        **setting,
        "accuracy": {
            "measured": datetime.date.today().isoformat(),
            "engine": engine.subject["engine"],
            "device": engine.subject["device"],
            "tasks": list(tasks),
            "lengths": list(lengths),
            "n": line.loss.n,
            "pairs": round(line.pairs, 4),
            "loss": interval(line.loss),
            "points": interval(line.points),
            **({"score": interval(line.score)} if line.score else {}),
        },
    }


def write(path, content):
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")


def merged(rows, names):
    """One line a setting over all lengths: what the search decides by."""
    same_length = [{**row, "length": 0} for row in rows if row["setting"] in (*names, table.DENSE)]
    return [line for line in table.lines(same_length) if line.setting != table.DENSE]
