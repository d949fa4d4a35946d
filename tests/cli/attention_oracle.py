# SPDX-License-Identifier: MIT
"""Token sparse attention in plain Python: what the program's output is compared with.

Written from the definitions alone: scores and counts of the paper, then dense attention in which a
pair (i, j) exists only when both tokens are in the head's set."""

import math


def softmax(logits):
    top = max(logits)
    terms = [math.exp(x - top) for x in logits]
    total = sum(terms)
    return [term / total for term in terms]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def scores(q, k, window, pool):
    """s[h][t]: what the last `window` queries of head h give to prefix token t, averaged, pooled."""
    tq, tk, hq, dim = len(q), len(k), len(q[0]), len(q[0][0])
    group = hq // len(k[0])
    window = min(window, tq)
    prefix = tk - window
    pooled = []
    for h in range(hq):
        mean = [0.0] * prefix
        for r in range(tq - window, tq):
            visible = tk - tq + r + 1
            logits = [dot(q[r][h], k[j][h // group]) / math.sqrt(dim) for j in range(visible)]
            for t, weight in enumerate(softmax(logits)[:prefix]):
                mean[t] += weight / window
        half = pool // 2
        pooled.append(
            [sum(mean[max(0, t - half) : t + half + 1]) / pool for t in range(prefix)]
        )
    return pooled


def kept_prefix(s, coverage, keep, min_tokens, tk):
    """How many prefix tokens stay; all of them means dense."""
    prefix = len(s[0])
    if keep > 0:
        return min(prefix, max(min_tokens, math.ceil(keep * tk) - (tk - prefix)))
    mass = sorted(sum(head[t] for head in s) for t in range(prefix))
    limit, total, below = coverage * sum(mass), 0.0, 0
    for part in mass:
        total += part
        if total >= limit:
            break
        below += 1
    if below == 0 or coverage == 0:
        return prefix
    return min(prefix, max(min_tokens, prefix - below - 1))


def select(s, count, num_sets, tk):
    """The sets: the best `count` prefix tokens of each and the window, ascending."""
    prefix, heads = len(s[0]), len(s)
    per_set = heads // num_sets
    sets = []
    for first in range(0, heads, per_set):
        rank = [sum(s[h][t] for h in range(first, first + per_set)) for t in range(prefix)]
        best = sorted(range(prefix), key=lambda t: (-rank[t], t))[:count]
        sets.append(sorted(best) + list(range(prefix, tk)))
    return sets


def attend(q, k, v, sets, band):
    """band 0: zeros where the set left a query out; else attention over its last `band` keys."""
    tq, tk, hq, dim = len(q), len(k), len(q[0]), len(q[0][0])
    group = hq // len(k[0])
    out = [[[0.0] * dim for _ in range(hq)] for _ in range(tq)]
    for h in range(hq):
        kept = set(sets[h // (hq // len(sets))])
        for r in range(tq):
            i = tk - tq + r
            if i in kept:
                keys = [j for j in range(i + 1) if j in kept]
            elif band:
                keys = list(range(max(0, i - band + 1), i + 1))
            else:
                continue
            weights = softmax([dot(q[r][h], k[j][h // group]) / math.sqrt(dim) for j in keys])
            for weight, j in zip(weights, keys):
                for d in range(dim):
                    out[r][h][d] += weight * v[j][h // group][d]
    return out
