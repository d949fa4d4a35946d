# SPDX-License-Identifier: MIT
"""Block patterns of other methods as boolean maps [heads, query blocks, key blocks].

XAttention (arXiv 2503.16428), FlexPrefill's query-aware branch by mean-pooled blocks
(arXiv 2502.20766), vertical-slash (MInference, arXiv 2407.02490, with FlexPrefill's cumulative
budget), and the true mass of each block, which no estimate beats. Whole prompts only.
"""
import math

import torch
import torch.nn.functional as F

BLOCK = 128
GROUPS = 12  # of query blocks computed as one batch each


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


def pooled(q, k, scale, threshold=0.9, last_full=0):
    """Means of the queries and keys of each block, softmax, cumulative threshold."""
    heads, group = q.shape[0], q.shape[0] // k.shape[0]
    q, k = _padded(q).float(), _padded(k).float()
    count = q.shape[1] // BLOCK
    q = q.reshape(heads, count, BLOCK, -1).mean(2)
    k = k.reshape(-1, count, BLOCK, k.shape[2]).mean(2).repeat_interleave(group, 0)
    at = torch.arange(count, device=q.device)
    s = (q @ k.transpose(-1, -2)) * scale
    s = s.masked_fill(at[None, None] > at[None, :, None], -math.inf).softmax(-1)
    return _finished(_fewest(s, threshold), last_full)


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


def vertical_slash(q, k, scale, gamma=0.9, window=64):
    """Columns and diagonals that hold `gamma` of what the last queries look at, as blocks."""
    heads, group, n = q.shape[0], q.shape[0] // k.shape[0], q.shape[1]
    row = torch.arange(n - window, n, device=q.device)
    column = torch.arange(n, device=q.device)
    s = (q[:, -window:].float() @ k.float().repeat_interleave(group, 0).transpose(-1, -2)) * scale
    s = s.masked_fill(column[None, None] > row[None, :, None], -math.inf).softmax(-1)
    distance = (row[:, None] - column[None]).clamp(min=0).reshape(1, -1).expand(heads, -1)
    slash = torch.zeros(heads, n, device=q.device).scatter_add_(1, distance, s.reshape(heads, -1))
    return _fewest(s.mean(1), gamma), _fewest(slash, gamma)


METHODS = {"xattention": xattention, "pooled": pooled, "true_mass": true_mass}


def chosen(q, k, scale, pattern):
    """bool [heads, query blocks, key blocks] of a pattern of blocks."""
    options = {key: value for key, value in pattern.items() if key != "method"}
    return METHODS[pattern["method"]](q, k, scale, **options)


def attend(q, k, v, scale, chosen):
    """A whole prompt in chosen blocks. Output, and pairs a head (a tensor of one).

    Query blocks of all heads are sorted by how many key blocks they read, and groups of about the
    same number are gathered and computed as one batch.
    """
    heads, length, dim = q.shape
    group, count = heads // k.shape[0], chosen.shape[-1]
    q = _padded(q).reshape(heads * count, BLOCK, dim)
    k, v = (_padded(x).reshape(-1, BLOCK, dim) for x in (k, v))
    out = torch.empty_like(q)
    reads = chosen.sum(-1).reshape(-1)
    order = reads.argsort()
    ordered = torch.argsort(~chosen.reshape(heads * count, count), dim=-1, stable=True)
    parts = order.split(-(-len(order) // GROUPS))
    widths = torch.stack([reads[part[-1]] for part in parts]).tolist()
    row = torch.arange(BLOCK, device=q.device)
    pairs = torch.zeros((), device=q.device, dtype=torch.float64)
    for part, width in zip(parts, widths):
        at = ordered[part, :width]
        there = torch.arange(width, device=q.device) < reads[part, None]
        head, block = part // count, part % count
        keys = ((head // group) * count)[:, None] + at
        column = (at[:, :, None] * BLOCK + row).reshape(len(part), 1, -1)
        mine = (block[:, None] * BLOCK + row)[:, :, None]
        mask = (column <= mine) & there.repeat_interleave(BLOCK, 1)[:, None]
        pairs += (mask & (mine < length)).sum()
        near_k, near_v = (x[keys].reshape(len(part), 1, -1, dim) for x in (k, v))
        out[part] = F.scaled_dot_product_attention(
            q[part][:, None], near_k, near_v, attn_mask=mask[:, None], scale=scale
        )[:, 0].to(out.dtype)
    return out.reshape(heads, -1, dim)[:, :length], pairs / heads


def allowed(q, k, scale, pattern):
    """fn(begin, end) -> bool [heads, end - begin, end]: what rows see in vertical_slash."""
    options = {key: value for key, value in pattern.items() if key != "method"}
    column = torch.arange(k.shape[1], device=q.device)
    verticals, slashes = vertical_slash(q, k, scale, **options)
    slashes[:, :128] = True  # FlexPrefill's minimum: the local window, and the first keys
    verticals[:, :16] = True

    def rows(begin, end):
        distance = (column[begin:end, None] - column[None, :end]).clamp(min=0)
        return verticals[:, None, :end] | slashes[:, distance]

    return rows
