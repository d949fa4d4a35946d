# SPDX-License-Identifier: MIT
"""Paired differences with bootstrap intervals, and Holm's correction over many settings."""
import dataclasses

import numpy as np

RESAMPLES = 10000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of a setting against dense, over the prompts that both answered."""

    mean: float
    low: float
    high: float
    p: float  # two-sided, that the mean is zero
    n: int


def paired(groups, seed=0):
    """Mean of paired differences with its bootstrap interval; None without a pair.

    groups: a list of differences for each task. Tasks weigh the same however many prompts they
    have, and prompts are drawn within their task, so the interval is that of the task average.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    if not groups:
        return None
    rng = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for group in groups:
        drawn = rng.integers(len(group), size=(RESAMPLES, len(group)))
        means += group[drawn].mean(axis=1)
    means /= len(groups)
    edge = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [edge, 1 - edge])
    # A share of 0 among so many resamples says no more than below 1 in that many.
    tail = max(min((means <= 0).mean(), (means >= 0).mean()), 1 / RESAMPLES)
    mean = float(np.mean([group.mean() for group in groups]))
    return Difference(
        mean, float(low), float(high), float(min(1, 2 * tail)), sum(map(len, groups))
    )


def holm(p_values):
    """Holm's step-down adjusted p values, in the order given."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    worst = 0.0
    for rank, at in enumerate(order):
        worst = max(worst, min(1.0, p_values[at] * (len(p_values) - rank)))
        adjusted[at] = worst
    return adjusted.tolist()
