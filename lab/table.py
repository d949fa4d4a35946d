# SPDX-License-Identifier: MIT
"""Results as a table: each setting against dense or another, on the prompts that both answered."""
import collections
import dataclasses

from lab import stats
from lab.results import ResultsError

DENSE = "dense"
# What rows may have besides: tokens a second of decoding, MiB beside the weights, held by the answer's end.
# (column, unit, digits)
COSTS = {
    "first": ("first token, s", 1, 3),  # in rows that were asked for their time alone, see timed()
    "decode": ("tokens/s", 1, 1),
    "peak_bytes": ("peak MiB", 2**20, 0),
    "held_bytes": ("held MiB", 2**20, 0),
}


@dataclasses.dataclass(frozen=True)
class Line:
    setting: str
    length: int
    n: int
    pairs: float | None  # share of dense's query-key pairs, mean over layers; None where not told
    kept: float | None  # share of the tokens kept, mean over layers; see the engine
    seconds: float | None  # median ratio of the time to what it is compared with, same prompt
    exact: float  # share of prompts whose answer is right token by token
    points: stats.Difference | None  # of `exact`, in points; None for what others are compared with
    loss: stats.Difference | None  # of the answer's loss, nats a token
    score: stats.Difference | None  # of RULER's metric, in points, where answers were generated
    by_task: dict  # task: (exact in %, mean loss, mean score in %), each or None
    costs: dict  # of what the rows have of COSTS, the median
    p_loss: float | None = None  # Holm's over the settings of this length


def _median(values):
    values = sorted(values)
    return values[len(values) // 2] if values else None


def _mean(values):
    return sum(values) / len(values)


def _mean_of(rows, field):
    """None where a row does not tell."""
    values = [row.get(field) for row in rows]
    return None if None in values else _mean(values)


def _by_pairs(line):
    return line.pairs is None, line.pairs or 0


def common(rows):
    """The rows of prompts that every setting of their length answered."""
    settings, answered = collections.defaultdict(set), collections.defaultdict(set)
    for row in rows:
        settings[row["length"]].add(row["setting"])
        answered[row["prompt"]].add(row["setting"])
    return [row for row in rows if answered[row["prompt"]] == settings[row["length"]]]


def _cells(rows, tasks):
    """(length, setting) -> prompt -> row"""
    cells = collections.defaultdict(dict)
    for row in rows:
        if tasks is None or row["task"] in tasks:
            cells[row["length"], row["setting"]][row["prompt"]] = row
    return cells


def lines(rows, tasks=None, against=DENSE):
    """One Line a setting and length, what they are compared with first, then by pairs.

    Raises:
      ResultsError: rows of one prompt that did not ask the same.
    """
    cells = _cells(rows, tasks)
    made = []
    for (length, setting), mine in cells.items():
        base = cells.get((length, against), {})
        both = [(row, base[key]) for key, row in mine.items() if key in base]
        for row, other in both:
            if row.get("digest") != other.get("digest"):
                raise ResultsError(
                    f"{row['prompt']}: {setting} was asked another prompt than {against}: other texts or tokenizer"
                )
        if setting != against and not both:
            continue
        made.append(_line(setting, length, mine, None if setting == against else both))
    made.sort(key=lambda line: (line.length, line.setting != against, _by_pairs(line)))
    return _corrected(made)


def _line(setting, length, mine, both):
    """both: the pairs of rows to compare; None for the setting that others are compared with."""
    tasks = sorted({row["task"] for row in mine.values()})

    def difference(field, factor=1.0):
        if both is None:
            return None
        groups = [
            [
                factor * (row[field] - base[field])
                for row, base in both
                if row["task"] == task and row[field] is not None and base[field] is not None
            ]
            for task in tasks
        ]
        return stats.paired(groups)

    def of_task(task):
        rows = [row for row in mine.values() if row["task"] == task]
        scores = [row["score"] for row in rows if row["score"] is not None]
        exact = [row["exact"] for row in rows if row["exact"] is not None]
        return (
            100 * _mean(exact) if exact else None,
            _mean_of(rows, "loss"),
            100 * _mean(scores) if scores else None,
        )

    rows = list(mine.values())
    exact = [row["exact"] for row in rows if row["exact"] is not None]
    return Line(
        setting=setting,
        length=length,
        n=len(rows),
        pairs=_mean_of(rows, "pairs"),
        kept=_mean_of(rows, "kept"),
        seconds=1.0 if both is None else _median([row["seconds"] / base["seconds"] for row, base in both]),
        exact=_mean(exact) if exact else float("nan"),
        points=difference("exact", 100.0),
        loss=difference("loss"),
        score=difference("score", 100.0),
        by_task={task: of_task(task) for task in tasks},
        costs={
            name: _median([row[name] for row in rows if name in row])
            for name in COSTS
            if any(name in row for row in rows)
        },
    )


def between(rows, first, second, tasks=None):
    """Lines of all other settings, compared with what `first` and `second` come to at the same pairs.

    That is a straight line between the two, prompt by prompt. Costs grow faster the fewer pairs are
    left, so where the two are one method the line is a little above it.
    """
    cells = _cells(rows, tasks)
    made = []
    for (length, setting), mine in cells.items():
        ends = [cells.get((length, name), {}) for name in (first, second)]
        keys = [key for key in mine if all(key in end for end in ends)]
        if setting in (first, second) or not keys:
            continue
        here, a, b = (_mean([of[key]["pairs"] for key in keys]) for of in (mine, *ends))
        if a == b:
            raise ResultsError(f"{first} and {second} compute the same pairs: nothing lies between them")
        share = (here - b) / (a - b)
        both = [(mine[key], _mixed(*(end[key] for end in ends), share)) for key in keys]
        made.append(_line(setting, length, {key: mine[key] for key in keys}, both))
    made.sort(key=lambda line: (line.length, line.pairs))
    return _corrected(made)


def _mixed(a, b, share):
    """The row that lies `share` of the way from b to a."""
    mix = lambda x, y: None if x is None or y is None else share * x + (1 - share) * y
    return {**a, **{name: mix(a[name], b[name]) for name in ("loss", "exact", "score", "seconds")}}


def timed(made, rows, against=DENSE):
    """The lines with the times and costs of other rows, which were asked alone on their machine."""
    measured = {(line.length, line.setting): line for line in lines(rows, against=against)}
    seconds = collections.defaultdict(list)
    for row in rows:
        seconds[row["length"], row["setting"]].append(row["seconds"])
    out = []
    for line in made:
        key = line.length, line.setting
        costs = {"first": _median(seconds[key]), **measured[key].costs} if key in measured else {}
        ratio = measured[key].seconds if key in measured else None
        out.append(dataclasses.replace(line, seconds=ratio, costs=costs))
    return out


def _corrected(made):
    out = []
    for length in sorted({line.length for line in made}):
        here = [line for line in made if line.length == length]
        tested = [line for line in here if line.loss is not None]
        adjusted = stats.holm([line.loss.p for line in tested])
        p_of = {line.setting: p for line, p in zip(tested, adjusted)}
        out += [dataclasses.replace(line, p_loss=p_of.get(line.setting)) for line in here]
    return out


def _interval(difference, digits):
    if difference is None:
        return "-"
    return (
        f"{difference.mean:+.{digits}f} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"
    )


def _cost(line, name):
    _, unit, digits = COSTS[name]
    return f"{line.costs[name] / unit:.{digits}f}" if name in line.costs else "-"


def markdown(made, by_task=False, timed=True, kept=False):
    """The lines as a Markdown table; not `timed` where an engine's time is not a user's."""
    tasks = sorted({task for line in made for task in line.by_task}) if by_task else []
    extra = [name for name in COSTS if timed and any(name in line.costs for line in made)]
    head = ["tokens", "setting", "n"] + ["kept"] * kept + ["pairs"]
    head += ["time"] * timed + [COSTS[name][0] for name in extra]
    head += ["d loss", "p", "d points"]
    head += ["d score"] if any(line.score for line in made) else []
    head += [f"{task}: %, loss" for task in tasks]
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in made:
        cells = [
            f"{line.length:,}",
            line.setting,
            str(line.n),
            *(["-" if line.kept is None else f"{line.kept:.3f}"] if kept else []),
            "-" if line.pairs is None else f"{line.pairs:.3f}",
            *(["-" if line.seconds is None else f"{line.seconds:.2f}"] if timed else []),
            *(_cost(line, name) for name in extra),
            _interval(line.loss, 3),
            "-" if line.p_loss is None else f"{line.p_loss:.3f}",
            _interval(line.points, 1),
        ]
        cells += [_interval(line.score, 1)] if "d score" in head else []
        for task in tasks:
            exact, loss, _ = line.by_task.get(task, (None, None, None))
            told = (exact, ".0f"), (loss, ".3f")
            shown = ["-" if value is None else f"{value:{form}}" for value, form in told]
            cells.append("-" if shown == ["-", "-"] else ", ".join(shown))
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)
