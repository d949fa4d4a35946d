# SPDX-License-Identifier: MIT
"""Results as a table: each setting against dense or another, on the prompts that both answered."""
import collections
import dataclasses

from lab import stats

DENSE = "dense"
# What rows may have besides: tokens a second of decoding, MiB beside the weights, held by the answer's end.
COSTS = {"decode": ("tokens/s", 1), "peak_bytes": ("peak MiB", 2**20), "held_bytes": ("held MiB", 2**20)}


@dataclasses.dataclass(frozen=True)
class Line:
    setting: str
    length: int
    n: int
    pairs: float  # share of dense's query-key pairs, mean over layers
    seconds: float | None  # median ratio of the time to what it is compared with, same prompt
    exact: float  # share of prompts whose answer is right token by token
    points: stats.Difference | None  # of `exact`, in points; None for what others are compared with
    loss: stats.Difference | None  # of the answer's loss, nats a token
    score: stats.Difference | None  # of RULER's metric, in points, where answers were generated
    by_task: dict  # task: (exact in %, mean loss, mean score in % or None)
    costs: dict  # of what the rows have of COSTS, the median
    p_loss: float | None = None  # Holm's over the settings of this length


def _median(values):
    values = sorted(values)
    return values[len(values) // 2] if values else None


def _mean(values):
    return sum(values) / len(values)


def lines(rows, tasks=None, against=DENSE):
    """One Line a setting and length, what they are compared with first, then by pairs."""
    cells = collections.defaultdict(dict)  # (length, setting) -> prompt -> row
    for row in rows:
        if tasks is None or row["task"] in tasks:
            cells[row["length"], row["setting"]][row["prompt"]] = row
    made = []
    for (length, setting), mine in cells.items():
        base = cells.get((length, against), {})
        both = [(row, base[key]) for key, row in mine.items() if key in base]
        if setting != against and not both:
            continue
        made.append(_line(setting, length, mine, None if setting == against else both))
    made.sort(key=lambda line: (line.length, line.setting != against, line.pairs))
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
            _mean([row["loss"] for row in rows]),
            100 * _mean(scores) if scores else None,
        )

    rows = list(mine.values())
    exact = [row["exact"] for row in rows if row["exact"] is not None]
    return Line(
        setting=setting,
        length=length,
        n=len(rows),
        pairs=_mean([row["pairs"] for row in rows]),
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


def markdown(made, by_task=False, timed=True):
    """The lines as a Markdown table; not `timed` where an engine's time is not a user's."""
    tasks = sorted({task for line in made for task in line.by_task}) if by_task else []
    extra = [name for name in COSTS if timed and any(name in line.costs for line in made)]
    head = ["tokens", "setting", "n", "pairs"] + ["time"] * timed + [COSTS[name][0] for name in extra]
    head += ["d loss", "p", "d points"]
    head += ["d score"] if any(line.score for line in made) else []
    head += [f"{task}: %, loss" for task in tasks]
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in made:
        cells = [
            f"{line.length:,}",
            line.setting,
            str(line.n),
            f"{line.pairs:.3f}",
            *([f"{line.seconds:.2f}"] if timed else []),
            *(f"{line.costs[name] / COSTS[name][1]:.1f}" if name in line.costs else "-" for name in extra),
            _interval(line.loss, 3),
            "-" if line.p_loss is None else f"{line.p_loss:.3f}",
            _interval(line.points, 1),
        ]
        cells += [_interval(line.score, 1)] if "d score" in head else []
        for task in tasks:
            exact, loss, _ = line.by_task.get(task, (None, None, None))
            shown = "-" if exact is None else f"{exact:.0f}"
            cells.append("-" if loss is None else f"{shown}, {loss:.3f}")
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)
