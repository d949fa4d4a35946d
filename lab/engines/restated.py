# SPDX-License-Identifier: MIT
"""The method in plain torch operations: score, select and attend as their headers define them.

Beside them the block patterns of other methods (lab.engines.blocks), on all tokens or on the kept
ones. Written for the length of prompts on a GPU, from the definitions and not from the library's
code: an engine that checks the others.
"""
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from lab.engines import EngineError, blocks
from lab.engines.restated_defaults import DEFAULTS

STEP = 1024  # rows whose mask is in memory at a time


WORDS = {"share": ("head", "kv_group", "layer"), "dropped": ("zero", "local"), "vote": ("recent", "even")}
BESIDE = ("layers", "min_rows", "blocks", "by_layer")  # of a setting, beside DEFAULTS


def check(setting):
    """A key or a word that this engine does not know would be measured as something else."""
    for key, value in setting.items():
        if key not in DEFAULTS and key not in BESIDE:
            raise EngineError(f"{key}: must be one of {', '.join((*DEFAULTS, *BESIDE))}")
        if key in WORDS and value not in WORDS[key]:
            raise EngineError(f"{key}: must be one of {', '.join(WORDS[key])}, is {value!r}")
    if setting.get("blocks"):
        blocks.parameters(setting["blocks"])
    for change in setting.get("by_layer", {}).values():
        check(change)


def score(q, k, scale, window, pool, vote="recent"):
    """[heads, prefix]: what the last queries look at, pooled (include/tokensparse/score.h).

    vote "even" asks as many queries spread evenly over the prompt instead: what the method's choice
    of the last ones is measured against.
    """
    heads, group = q.shape[0], q.shape[0] // k.shape[0]
    window = min(window, q.shape[1])
    prefix = k.shape[1] - window
    if vote == "even":
        return _even_score(q, k, scale, window, pool)
    last = q[:, -window:].float().reshape(k.shape[0], group * window, -1)
    s = (last @ k.float().transpose(-1, -2) * scale).reshape(heads, window, -1)
    late = torch.ones(window, window, dtype=torch.bool, device=q.device).triu(1)
    s[:, :, prefix:] = s[:, :, prefix:].masked_fill(late, float("-inf"))
    a = s.softmax(-1)[:, :, :prefix].mean(1)
    return F.avg_pool1d(a[None], pool, 1, pool // 2)[0]


def _even_score(q, k, scale, window, pool):
    heads, group, length = q.shape[0], q.shape[0] // k.shape[0], k.shape[1]
    prefix = length - window
    at = torch.linspace(0, q.shape[1] - 1, window, device=q.device).long()
    some = q[:, at].float().reshape(k.shape[0], group * window, -1)
    s = (some @ k.float().transpose(-1, -2) * scale).reshape(heads, window, -1)
    later = torch.arange(length, device=q.device) > at[:, None] + (length - q.shape[1])
    a = s.masked_fill(later, float("-inf")).softmax(-1)[:, :, :prefix].mean(1)
    return F.avg_pool1d(a[None], pool, 1, pool // 2)[0]


def select(q, k, scale, setting):
    """[sets, kept] ascending positions, or None where everything is kept (select.h)."""
    options = {**DEFAULTS, **setting}
    window = min(options["window"], q.shape[1])
    length = k.shape[1]
    prefix = length - window
    if prefix <= options["min_tokens"]:
        return None
    s = score(q, k, scale, window, options["pool"], options["vote"])
    if options["keep"]:
        keep = -int(-options["keep"] * length // 1) - window
    else:
        mass = s.double().mean(0)
        below = int((mass.sort().values.cumsum(0) < options["coverage"] * mass.sum()).sum())
        if below == 0:
            return None
        keep = prefix - below - 1
    keep = min(prefix, max(options["min_tokens"], keep))
    if keep == prefix:
        return None
    sets = {"head": q.shape[0], "kv_group": k.shape[0], "layer": 1}[options["share"]]
    ranked = s.reshape(sets, -1, prefix).sum(1).topk(keep, -1).indices.sort(-1).values
    tail = torch.arange(prefix, length, device=q.device).expand(sets, -1)
    return torch.cat([ranked, tail], 1)


def causal(q, k, v, scale):
    """Dense attention of the last rows of a sequence."""
    if q.shape[1] == k.shape[1]:
        return F.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True
        )[0]
    group = q.shape[0] // k.shape[0]
    k, v = (x.repeat_interleave(group, 0)[None] for x in (k, v))
    bias = causal_lower_right(q.shape[1], k.shape[2])
    return F.scaled_dot_product_attention(q[None], k, v, attn_mask=bias, scale=scale)[0]


def local(q, k, v, scale, sink, band):
    """Every row over the first `sink` keys and its last `band`; what left-out rows get.

    Blocks of rows are a batch: each sees the sinks and the keys from its first row's band on.
    """
    heads, rows, dim = q.shape
    offset, group = k.shape[1] - rows, heads // k.shape[0]
    step = max(64, band)
    count = -(-rows // step)
    begin = torch.arange(count, device=q.device)[:, None] * step + offset
    near = begin + torch.arange(1 - band, step, device=q.device)
    first = torch.arange(sink, device=q.device).expand(count, -1)
    # Eight columns together: what the fast kernels want of a mask.
    spare = torch.full((count, -(sink + near.shape[1]) % 8), k.shape[1], device=q.device)
    columns = torch.cat([first, near, spare], 1)
    row = begin + torch.arange(step, device=q.device)
    at, i = columns[:, None, :], row[:, :, None]
    in_sink = torch.arange(columns.shape[1], device=q.device) < sink
    # A key of the first ones that the band reaches too counts once, with the band.
    mask = torch.where(in_sink, at <= i - band, (at >= 0) & (at > i - band) & (at <= i))
    gathered = columns.clamp(0, k.shape[1] - 1)
    near_k, near_v = (
        x[:, gathered].transpose(0, 1).repeat_interleave(group, 1) for x in (k, v)
    )
    blocks_q = F.pad(q, (0, 0, 0, count * step - rows)).reshape(heads, count, step, dim)
    out = F.scaled_dot_product_attention(
        blocks_q.transpose(0, 1), near_k, near_v, attn_mask=mask[:, None], scale=scale
    )
    return out.transpose(0, 1).reshape(heads, -1, dim)[:, :rows].contiguous()


def local_pairs(position, sink, band):
    """Keys that left-out rows at these positions see."""
    return torch.minimum(position + 1, torch.full_like(position, band)) + torch.clamp(
        position + 1 - band, min=0, max=sink
    )


def masked(q, k, v, scale, allowed):
    """A whole prompt where allowed(begin, end) says what rows see. Output, and pairs a head."""
    group = q.shape[0] // k.shape[0]
    k, v = (x.repeat_interleave(group, 0)[None] for x in (k, v))
    column = torch.arange(k.shape[2], device=q.device)
    out, pairs = torch.empty_like(q), 0.0
    for begin in range(0, q.shape[1], STEP):
        end = min(q.shape[1], begin + STEP)
        mask = allowed(begin, end) & (column[:end] <= column[begin:end, None])
        pairs += float(mask.sum() / mask.shape[0])
        out[:, begin:end] = F.scaled_dot_product_attention(
            q[None, :, begin:end], k[:, :, :end], v[:, :, :end], attn_mask=mask[None], scale=scale
        )[0]
    return out, pairs


def _inner(q, k, v, scale, pattern):
    """Attention on the kept rows: dense, or in a block pattern. Output, and pairs a head."""
    if pattern is None:
        rows, keys = q.shape[1], k.shape[1]
        return causal(q, k, v, scale), rows * (keys - rows) + rows * (rows + 1) / 2
    if blocks.method(pattern) in blocks.OF_KEYS:
        return masked(q, k, v, scale, blocks.allowed(q, k, scale, pattern))
    return blocks.attend(q, k, v, scale, blocks.chosen(q, k, scale, pattern))


def _batched(q, k, v, scale, sets, out):
    """Every set of a whole prompt at once: all keep as many rows. Writes the kept rows of out, and
    gives the pairs a head."""
    count, kept, dim = sets.shape[0], sets.shape[1], q.shape[2]
    if count > k.shape[0]:  # a set per query head: each with its own K and V
        k, v = (x.repeat_interleave(count // x.shape[0], 0) for x in (k, v))
    at = sets[:, None, :, None]

    def of_sets(x):
        x = x.reshape(count, -1, x.shape[1], dim)
        return x.gather(2, at.expand(-1, x.shape[1], -1, dim))

    got = F.scaled_dot_product_attention(
        of_sets(q), of_sets(k), of_sets(v), is_causal=True, scale=scale, enable_gqa=True
    )
    out.view(count, -1, q.shape[1], dim).scatter_(
        2, at.expand(-1, got.shape[1], -1, dim), got.to(out.dtype)
    )
    return kept * (kept + 1) / 2


def attend(q, k, v, scale, setting):
    """One layer of one sequence: q [Hq, Tq, D], the last Tq of k, v [Hkv, Tk, D].

    Gives the output, query-key pairs a head (a number, or a tensor of one), and the share of the
    tokens kept.
    """
    pattern = setting.get("blocks") or None
    options = {**DEFAULTS, **setting}
    sets = None
    if options["coverage"] > 0 or options["keep"]:
        sets = select(q, k, scale, setting)
    if sets is None:
        return *_inner(q, k, v, scale, pattern), 1.0
    offset = k.shape[1] - q.shape[1]
    near, pairs, per = None, 0.0, q.shape[0] // sets.shape[0]
    if options["dropped"] == "local":
        out = local(q, k, v, scale, options["sink"], options["band"])
        position = torch.arange(offset, k.shape[1], device=q.device)
        near = local_pairs(position, options["sink"], options["band"])
    else:
        out = torch.zeros_like(q)
    if offset == 0 and pattern is None:
        pairs = _batched(q, k, v, scale, sets, out)
        if near is not None:
            pairs = pairs + near.sum() - near[sets].sum() / sets.shape[0]
        return out, pairs, sets.shape[1] / k.shape[1]
    for index, kept in enumerate(sets):
        heads = slice(index * per, (index + 1) * per)
        group = q.shape[0] // k.shape[0]
        kv_heads = slice(index * per // group, max(index * per // group + 1, (index + 1) * per // group))
        rows = kept[kept >= offset] - offset
        got, computed = _inner(
            q[heads][:, rows], k[kv_heads][:, kept], v[kv_heads][:, kept], scale, pattern
        )
        out[heads, rows] = got.to(out.dtype)
        if near is not None:
            computed = computed + near.sum() - near[rows].sum()
        pairs = pairs + computed * per
    return out, pairs / q.shape[0], sets.shape[1] / k.shape[1]
