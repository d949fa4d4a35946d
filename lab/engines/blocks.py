# SPDX-License-Identifier: MIT
"""Block patterns of other methods as boolean maps [heads, query blocks, key blocks].

XAttention (arXiv 2503.16428), FlexPrefill (arXiv 2502.20766), mean-pooled blocks, MInference's
vertical-slash (arXiv 2407.02490) and the same with a cumulative budget, and the true mass of each
block, which no estimate beats. Whole prompts only. What each means: include/tokensparse/estimate.h.
"""
import functools
import inspect
import math
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from lab.engines import EngineError

BLOCK = 128
HEADS = 3  # whose gathered keys are in memory together


def _padded(x):
    return F.pad(x, (0, 0, 0, -x.shape[1] % BLOCK))


def _fewest(p, mass):
    """The fewest entries of each row that reach `mass` of the row."""
    ordered, at = torch.sort(p, -1, descending=True)
    before = ordered.cumsum(-1) - ordered
    keep = before < mass * p.sum(-1, keepdim=True)
    return torch.zeros_like(p, dtype=torch.bool).scatter_(-1, at, keep)


def _finished(blocks, last_full):
    """The first key block and the diagonal are always in; nothing above the diagonal."""
    count = blocks.shape[-1]
    at = torch.arange(count, device=blocks.device)
    blocks = blocks | (at[None, :, None] == at[None, None, :])
    blocks[:, :, 0] = True
    if last_full:
        blocks[:, -last_full:] = True
    return blocks & (at[None, :, None] >= at[None, None, :])


def xattention(q, k, scale, threshold=0.9, stride=8, last_full=0):
    """Antidiagonal sums of every stride-th row and column, softmax, cumulative threshold."""
    heads, group = q.shape[0], q.shape[0] // k.shape[0]
    q, k = _padded(q), _padded(k)
    n, dim = q.shape[1], q.shape[2]
    rows, per = n // stride, BLOCK // stride
    q = q.reshape(heads, rows, stride, dim).flip(2).reshape(heads, rows, stride * dim)
    k = k.reshape(-1, rows, stride * dim).repeat_interleave(group, 0)
    mass = torch.zeros(heads, n // BLOCK, n // BLOCK, device=q.device)
    at = torch.arange(rows, device=q.device)
    for begin in range(0, rows, 1024):
        end = min(rows, begin + 1024)
        s = (q[:, begin:end] @ k.transpose(-1, -2)).float() * (scale / stride)
        s = s.masked_fill(at[None, None] > at[None, begin:end, None], -math.inf).softmax(-1)
        s = s.reshape(heads, (end - begin) // per, per, rows // per, per)
        mass[:, begin // per : end // per] = s.sum((2, 4))
    return _finished(_fewest(mass, threshold), last_full)


def _block_means(x):
    """Means over each block, of what the last one has."""
    count = -(-x.shape[1] // BLOCK)
    sums = _padded(x).float().reshape(x.shape[0], count, BLOCK, -1).sum(2)
    there = torch.full((count,), float(BLOCK), device=x.device)
    there[-1] -= -x.shape[1] % BLOCK
    return sums / there[:, None]


def _pooled_mass(q, k, scale):
    group = q.shape[0] // k.shape[0]
    q, k = _block_means(q), _block_means(k).repeat_interleave(group, 0)
    at = torch.arange(q.shape[1], device=q.device)
    s = (q @ k.transpose(-1, -2)) * scale
    return s.masked_fill(at[None, None] > at[None, :, None], -math.inf).softmax(-1)


def pooled(q, k, scale, threshold=0.9, last_full=0):
    """Means of the queries and keys of each block, softmax, cumulative threshold."""
    return _finished(_fewest(_pooled_mass(q, k, scale), threshold), last_full)


def true_mass(q, k, scale, threshold=0.9, last_full=0):
    """The attention mass that each block really has: the limit of any estimate."""
    heads, group = q.shape[0], q.shape[0] // k.shape[0]
    q, k = _padded(q), _padded(k).repeat_interleave(group, 0)
    n = q.shape[1]
    mass = torch.zeros(heads, n // BLOCK, n // BLOCK, device=q.device)
    at = torch.arange(n, device=q.device)
    for begin in range(0, n, 512):
        end = min(n, begin + 512)
        s = (q[:, begin:end] @ k.transpose(-1, -2)).float() * scale
        s = s.masked_fill(at[None, None] > at[None, begin:end, None], -math.inf).softmax(-1)
        s = s.reshape(heads, (end - begin) // BLOCK, BLOCK, n // BLOCK, BLOCK)
        mass[:, begin // BLOCK : end // BLOCK] = s.sum((2, 4))
    return _finished(_fewest(mass, threshold), last_full)


def _lines(q, k, scale, window):
    """Mean attention of the last queries on every key, and at every distance: [heads, keys] each."""
    heads, group, n = q.shape[0], q.shape[0] // k.shape[0], k.shape[1]
    window = min(window, q.shape[1])
    row = torch.arange(n - window, n, device=q.device)
    column = torch.arange(n, device=q.device)
    s = (q[:, -window:].float() @ k.float().repeat_interleave(group, 0).transpose(-1, -2)) * scale
    s = s.masked_fill(column[None, None] > row[None, :, None], -math.inf).softmax(-1)
    distance = (row[:, None] - column[None]).clamp(min=0).reshape(1, -1).expand(heads, -1)
    slash = torch.zeros(heads, n, device=q.device).scatter_add_(1, distance, s.reshape(heads, -1))
    return s.mean(1), slash / window


def vertical_slash(q, k, scale, gamma=0.9, window=64):
    """Columns and diagonals that hold `gamma` of what the last queries look at."""
    verticals, slashes = (_fewest(mass, gamma) for mass in _lines(q, k, scale, window))
    slashes[:, :128] = True  # FlexPrefill's minimum: the local window, and the first keys
    verticals[:, :16] = True
    return verticals, slashes


def _strongest(mass, count, first):
    """The `count` strongest entries of each row; the first `first` go before all others."""
    mass = mass.clone()
    mass[:, :first] = math.inf
    at = mass.topk(min(count, mass.shape[1]), -1).indices
    return torch.zeros_like(mass, dtype=torch.bool).scatter_(1, at, True)


def minference(q, k, scale, vertical=1000, slash=6096):
    """MInference's vertical-slash in fixed numbers: columns, and the blocks that slashes cross."""
    column, line = _lines(q, k, scale, 64)
    slashes = _padded(_strongest(line, max(slash, 50), 100)[..., None])[..., 0]
    slashes = slashes.reshape(len(slashes), -1, BLOCK)
    offsets = slashes.any(-1)  # query block minus key block
    offsets[:, 1:] |= slashes[:, :-1, 1:].any(-1)
    return _strongest(column, max(vertical, 30), 30), _diagonals(offsets)


def _diagonals(offsets):
    """bool [heads, query blocks, key blocks] of the block diagonals in `offsets`."""
    at = torch.arange(offsets.shape[1], device=offsets.device)
    distance = at[:, None] - at[None]
    return offsets[:, distance.clamp(min=0)] & (distance >= 0)


def _block_mass(mass):
    return _padded(mass[..., None]).reshape(len(mass), -1, BLOCK).sum(-1)


def flexprefill(q, k, scale, gamma=0.95, tau=0.1, min_budget=1024):
    """FlexPrefill: lines of the last query block, or pooled blocks where those tell the same."""
    heads, group, n = q.shape[0], q.shape[0] // k.shape[0], k.shape[1]
    column, line = _lines(q, k, scale, BLOCK)
    true, slashes = _block_mass(column), _block_mass(line)
    count, least = true.shape[1], -(-min_budget // BLOCK)
    if n <= max(2 * BLOCK, min_budget):
        return _finished(torch.ones(heads, count, count, dtype=torch.bool, device=q.device), 0)
    means = _block_means(k).repeat_interleave(group, 0)
    guess = (q[:, None, -BLOCK:].float().mean(2) @ means.transpose(-1, -2) * scale).softmax(-1)[:, 0]
    middle = (true + guess) / 2
    far = 0.5 * sum((p * (p / middle).clamp(min=1e-30).log()).sum(-1) for p in (true, guess))
    lines = (far.clamp(min=0).sqrt() >= tau)[:, None]

    def kept(mass, blocks):
        needed = _fewest(mass, gamma).sum(-1, keepdim=True) // BLOCK + 1
        wanted = torch.where(lines, needed.clamp(min=least), least)
        ranked = torch.cat([torch.full_like(blocks[:, :1], math.inf), blocks[:, 1:]], 1)
        rank = ranked.argsort(-1, descending=True).argsort(-1)
        return rank < wanted

    chosen = kept(column, true)[:, None] | _diagonals(kept(line, slashes))
    mass = _pooled_mass(q, k, scale).reshape(heads, -1)
    ordered, at = mass.sort(-1, descending=True)
    while_under = ordered.cumsum(-1) <= gamma * count
    pairs = torch.zeros_like(mass, dtype=torch.bool).scatter_(1, at, while_under)
    return _finished(chosen | (pairs.reshape(heads, count, count) & ~lines[:, :, None]), 0)


METHODS = {
    "xattention": xattention,
    "pooled": pooled,
    "true_mass": true_mass,
    "flexprefill": flexprefill,
}

OF_KEYS = {"vertical_slash": vertical_slash, "minference": minference}  # not of blocks alone
# Where a setting file means something else by what is not given.
OF_SETTINGS = {"xattention": {"stride": 16}}


def method(pattern):
    return pattern.get("method", pattern.get("pattern"))


def parameters(pattern):
    """Of a pattern: {"method": name, ...}, or as a setting file says it, {"pattern": name, ...}."""
    known = {**METHODS, **OF_KEYS}
    name = method(pattern)
    if name not in known:
        raise EngineError(f"blocks: must be one of {', '.join(known)}, is {name!r}")
    found = {key: value for key, value in pattern.items() if key not in ("method", "pattern")}
    mine = list(inspect.signature(known[name]).parameters)[3:]
    for key in found:
        if key not in mine:
            raise EngineError(f"blocks.{key}: must be one of {', '.join(mine)}")
    return {**(OF_SETTINGS.get(name, {}) if "pattern" in pattern else {}), **found}


def chosen(q, k, scale, pattern):
    """bool [heads, query blocks, key blocks] of a pattern of blocks."""
    return METHODS[method(pattern)](q, k, scale, **parameters(pattern))


def attend(q, k, v, scale, chosen):
    """A whole prompt in chosen blocks. Output, and pairs a head (a tensor of one).

    Each query block is a sequence of its own, of the key blocks it reads. Its own block is the last of
    them, so what it may see is what the last rows of a sequence see: causal, no mask.
    """
    heads, length, dim = q.shape
    group, count = heads // k.shape[0], chosen.shape[-1]
    q = _padded(q).reshape(heads, count, BLOCK, dim)
    k, v = (_padded(x).reshape(-1, BLOCK, dim) for x in (k, v))
    out = (_ragged if q.is_cuda and q.element_size() == 2 and _trusted() else _by_width)(q, k, v, scale, chosen, group)
    # Rows of a block see all of its blocks but the last one, and of that one their own part.
    inside = torch.full((count,), float(BLOCK), device=q.device, dtype=torch.float64)
    inside[-1] -= -length % BLOCK
    others = (chosen.sum(-1) - 1) * BLOCK
    pairs = (others * inside + inside * (inside + 1) / 2).sum()
    return out.reshape(heads, -1, dim)[:, :length], pairs / heads


def _by_width(q, k, v, scale, chosen, group):
    """Query blocks of all heads that read as many key blocks are one batch."""
    heads, count, _, dim = q.shape
    q = q.reshape(heads * count, BLOCK, dim)
    out = torch.empty_like(q)
    reads = chosen.sum(-1).reshape(-1)
    order = reads.argsort(stable=True)
    ordered = torch.argsort(~chosen.reshape(heads * count, count), dim=-1, stable=True)
    numbers = torch.bincount(reads, minlength=count + 1).tolist()
    for width, part in enumerate(order.split(numbers)):
        if not len(part):
            continue
        keys = ((part // count // group) * count)[:, None] + ordered[part, :width]
        near_k, near_v = (x[keys].reshape(len(part), 1, -1, dim) for x in (k, v))
        causal = causal_lower_right(BLOCK, width * BLOCK)
        got = F.scaled_dot_product_attention(
            q[part][:, None], near_k, near_v, attn_mask=causal, scale=scale
        )
        out[part] = got[:, 0].to(out.dtype)
    return out


def _ragged(q, k, v, scale, chosen, group):
    """All query blocks of a few heads in one launch: sequences of different lengths."""
    heads, count, _, dim = q.shape
    out = torch.empty_like(q)
    for begin in range(0, heads, HEADS):
        some = chosen[begin : begin + HEADS]
        head, _, block = some.nonzero(as_tuple=True)
        keys = (head + begin) // group * count + block
        near_k, near_v = (x[keys].reshape(-1, 1, dim) for x in (k, v))
        ends = F.pad(some.sum(-1).reshape(-1).cumsum(0), (1, 0)) * BLOCK
        rows = torch.arange(len(ends), device=q.device) * BLOCK
        got = torch.ops.aten._flash_attention_forward(
            q[begin : begin + HEADS].reshape(-1, 1, dim), near_k, near_v, rows.int(), ends.int(),
            BLOCK, count * BLOCK, 0.0, True, False, scale=scale,
        )[0]  # fmt: skip
        out[begin : begin + HEADS] = got.reshape(-1, count, BLOCK, dim)
    return out


@functools.cache
def _trusted():
    """Whether this torch's kernel for sequences of different lengths gives what the other way does."""
    make = torch.Generator(device="cuda").manual_seed(1)
    q = torch.randn(4, 9, BLOCK, 64, device="cuda", dtype=torch.bfloat16, generator=make)
    k = torch.randn(2 * 9, BLOCK, 64, device="cuda", dtype=torch.bfloat16, generator=make)
    some = torch.rand(4, 9, 9, device="cuda", generator=make) < 0.4
    chosen = _finished(some, 0)
    try:
        ours = _ragged(q, k, k, 0.125, chosen, 2)
    except (RuntimeError, TypeError, AttributeError) as error:
        print(f"blocks: no ragged attention: {error}", file=sys.stderr)
        return False
    other = _by_width(q, k, k, 0.125, chosen, 2).reshape(ours.shape)
    good = bool((ours.float() - other.float()).abs().max() < 0.02)
    print(f"blocks: ragged attention {'agrees' if good else 'differs'}", file=sys.stderr, flush=True)
    return good


def allowed(q, k, scale, pattern):
    """fn(begin, end) -> bool [heads, end - begin, end]: what rows see in patterns of single keys."""
    options = parameters(pattern)
    column = torch.arange(k.shape[1], device=q.device)
    if method(pattern) == "minference":
        verticals, chosen = minference(q, k, scale, **options)
        block = column // BLOCK
        return lambda begin, end: verticals[:, None, :end] | chosen[:, block[begin:end]][:, :, block[:end]]
    verticals, slashes = vertical_slash(q, k, scale, **options)

    def rows(begin, end):
        distance = (column[begin:end, None] - column[None, :end]).clamp(min=0)
        return verticals[:, None, :end] | slashes[:, distance]

    return rows
