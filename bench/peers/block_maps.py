#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Which blocks the methods' own published code reads, beside what tsp_estimate() lists, on the same
tensors: alone, and on the kept tokens of every head. Prints a line for each case and exits with 1
where a map differs in what docs/blocks.md does not say.

usage: block_maps.py [METHOD...] [--checkouts FOLDER] [--tokens N...] [--backend ref|cpu|cuda]
Their repositories are cloned at the commits in block_methods.py (git and the network; a few MB of
each are kept in the cache), or taken from FOLDER/NAME. Their Python runs on the CPU in f32, their
Triton code in Triton's interpreter. Needs torch, triton, einops and the package `tokensparse` with
its library (TOKENSPARSE_LIBRARY); none of it is changed, but "cuda" means "cpu" while their code runs.
"""
import argparse
import os
import pathlib
import sys

os.environ["TRITON_INTERPRET"] = "1"
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "adapters/python/src"))

import torch  # noqa: E402

import tokensparse  # noqa: E402
from block_methods import (  # noqa: E402
    BLOCK, CHUNK, OF_PAPER, PEERS, FlexPrefill, MInference, XAttention)


def tensors(tokens, heads, kv_heads, dim, seed):
    """q [Hq, T, D] and k [Hkv, T, D] in f32 whose attention is local, has a sink and a few heavy
    keys, as that of models; values of bf16, so that every backend reads the same."""
    g = torch.Generator().manual_seed(seed)
    place = torch.arange(tokens)[:, None] / torch.tensor([16.0, 64.0, 256.0, 1024.0])
    wave = torch.cat([place.sin(), place.cos()], -1)  # near tokens look alike
    basis = torch.randn(8, dim, generator=g) / 3
    k = wave @ basis + torch.randn(kv_heads, tokens, dim, generator=g) * 0.7
    topic = torch.randn(kv_heads, 1, dim, generator=g)
    heavy = (torch.rand(kv_heads, tokens, 1, generator=g) < 0.01).float()
    heavy[:, :4] = 1
    k = k + topic * heavy
    strength = torch.linspace(0.3, 1.2, heads)[:, None, None]
    q = wave @ basis + torch.randn(heads, tokens, dim, generator=g) * 0.7
    q = q * (1 + strength) + topic.repeat_interleave(heads // kv_heads, 0) * strength
    return q.bfloat16().float(), k.bfloat16().float()


def as_map(lists, of, tokens):
    n = -(-tokens // BLOCK)
    result = torch.zeros(lists.blocks.shape[1], n, n, dtype=torch.bool)
    for s in range(result.shape[0]):
        for m in range(n):
            listed = lists.blocks[of, s, m, :int(lists.counts[of, s, m])]
            result[s, m, torch.as_tensor(listed).long()] = True
    return result


class Ours:
    def __init__(self, backend):
        self.cuda = backend == "cuda"
        self.context = tokensparse.Context(backend)

    def lists(self, q, k, kind, options, selected=None):
        q, k = (x.transpose(0, 1).contiguous() for x in (q, k))
        if self.cuda:
            q, k = q.bfloat16().cuda(), k.bfloat16().cuda()
        found = tokensparse.estimate(q, k, kind, selected=selected, context=self.context, **options)
        return found


def rankings_apart(theirs, ours):
    """Rows whose maps, beside the diagonal, are not one a part of the other: not two lengths of the
    same ranking."""
    off = ~torch.eye(*theirs.shape[-2:], dtype=torch.bool)
    a, b = theirs & off, ours & off
    return int(((a & ~b).any(-1) & (b & ~a).any(-1)).sum())


def compare(kind, theirs, ours, tokens):
    """(rows compared for equality, blocks apart there, what is wrong or None). What theirs do
    differently, as docs/blocks.md says, is taken out by name."""
    n = theirs.shape[-1]
    theirs = theirs & torch.ones(n, n, dtype=torch.bool).tril()
    whole = n - (tokens % BLOCK != 0)  # blocks that are full
    first = 0
    wrong = None
    if kind == "xattention":
        # In the first chunk they lose column 0, and count one block less than they have read.
        first = CHUNK // BLOCK
        more = theirs[:, :first] & ~ours[:, :first]
        less = ours[:, :first] & ~theirs[:, :first]
        if int(more.sum(-1).max()) > 1 or bool(less[..., 1:].any()):
            wrong = "more than one block in the first chunk"
    elif kind == "pooled":
        # They stop below the threshold, we when it is reached, and the diagonal is always in. A last
        # block that is not full is never like itself to them (0 / 0): its queries read everything.
        theirs, ours = theirs[:, :whole], ours[:, :whole]
        rows = rankings_apart(theirs, ours)
        return theirs.shape[1], int((theirs ^ ours).sum()), (
            f"{rows} rows are of another ranking" if rows > 0 else None)
    elif kind == "flexprefill" and whole < n:
        # They count slash blocks from the far end: what is near is then in two.
        return 0, int((theirs ^ ours).sum()), None
    apart = theirs[:, first:] ^ ours[:, first:]
    if int(apart.sum()) > 1e-3 * int(ours.sum()):
        wrong = f"{int(apart.sum())} of {int(ours.sum())} blocks"
    return n - first, int(apart.sum()), wrong


def kept_tokens(heads, tokens, seed):
    """A list for every head: about half of the tokens and the last 128, as many in each."""
    g = torch.Generator().manual_seed(seed)
    keep = tokens // 2 // BLOCK * BLOCK
    rank = torch.rand(heads, tokens, generator=g)
    rank[:, -BLOCK:] = 2
    return rank.topk(keep, -1).indices.sort(-1).values


def run_case(ours, peer, kind, tokens, args, composed):
    q, k = tensors(tokens, args.heads, args.kv_heads, args.dim, tokens)
    group = args.heads // args.kv_heads
    selected, count = None, tokens
    if composed:
        kept = kept_tokens(args.heads, tokens, tokens)
        count = kept.shape[1]
        at = kept[:, :, None].expand(-1, -1, args.dim)
        short_q = q.gather(1, at)
        short_k = k.repeat_interleave(group, 0).gather(1, at)
        indices = torch.full((1, args.heads, tokens), -1, dtype=torch.int32)
        indices[0, :, :count] = kept
        counts = torch.full((1,), count, dtype=torch.int32)
        if ours.cuda:
            indices, counts = indices.cuda(), counts.cuda()
        selected = tokensparse.Selection(indices, counts)
    else:
        short_q, short_k = q, k.repeat_interleave(group, 0)
    options = dict(peer.options)
    theirs = peer.map(short_q, short_k, options)
    lists = ours.lists(q, k, kind, options, selected)
    found = as_map(lists, 0, count)
    rows, apart, wrong = compare(kind, theirs, found, count)
    extra = ""
    if kind == "minference":
        mine = [set(torch.as_tensor(lists.columns[0, h, :int(lists.num_columns[0, h])]).tolist())
                for h in range(args.heads)]
        other = [set(c.tolist()) for c, _ in peer.lines(short_q, short_k, options)]
        columns = sum(len(a ^ b) for a, b in zip(mine, other))
        extra = f", columns {columns} of {sum(map(len, other))}"
        if columns > 1e-3 * sum(map(len, other)):
            wrong = f"{columns} columns"
    n = -(-count // BLOCK)
    density = int(found.sum()) / (args.heads * n * (n + 1) / 2)
    verdict = "WRONG" if wrong else "same " if kind != "pooled" and rows > 0 else "known"
    print(f"{verdict} {peer.name:22} {tokens:6} tokens{f', {count} kept' if composed else '':13} "
          f"density {density:.3f}  {rows:3} of {n} rows compared, blocks apart {apart} of "
          f"{int(found.sum())}{extra}{': ' + wrong if wrong else ''}", flush=True)
    return wrong is None


def known_faults(ours, folder):
    """What their code does wrong, each shown, and that ours does not."""
    good = True

    def show(what, theirs, mine):
        nonlocal good
        good = good and theirs and mine
        print(f"fault {what}: {'shown' if theirs else 'NOT SHOWN'}, ours "
              f"{'right' if mine else 'WRONG'}", flush=True)

    peer = XAttention(folder, False)
    q, k = tensors(2048, 1, 1, 64, 3)
    options = {"stride": 16, "threshold": 0.99}
    found = as_map(ours.lists(q, k, "xattention", options), 0, 2048)
    theirs = peer.by_chunks(q, k, options, CHUNK)
    show("x-attention: lengths that are a multiple of the chunk hide all chunks before",
         not bool(theirs[0, CHUNK // BLOCK:-CHUNK // BLOCK, 1:CHUNK // BLOCK].any()),
         bool(found[0, CHUNK // BLOCK:, 1:CHUNK // BLOCK].any()))
    peer = FlexPrefill(folder, False)
    q, k = tensors(2048, 1, 1, 64, 3)
    q[..., 0], k[..., 0] = 4, 0
    k[:, 512:640, 0] = -400  # weights of this block are 0 in f32
    by_pooled = {"gamma": 0.95, "tau": 1.0, "min_budget": 128}
    by_lines = {**by_pooled, "tau": 0.0}
    theirs = [peer.map(q, k, options) for options in (by_pooled, by_lines)]
    mine = [as_map(ours.lists(q, k, "flexprefill", options), 0, 2048)
            for options in (by_pooled, by_lines)]
    show("FlexPrefill: a weight that underflows makes the distance NaN, and lines decide",
         torch.equal(*theirs), not torch.equal(*mine) and torch.equal(mine[1], theirs[1]))
    q, k = tensors(2048, 1, 1, 64, 3)
    peer = MInference(folder, True)
    options = {"vertical": 100, "slash": 100}
    lists = ours.lists(q, k, "minference", options)
    mine = set(torch.as_tensor(lists.columns[0, 0, :int(lists.num_columns[0, 0])]).tolist())
    right = MInference(folder, False).lines(q, k, options)[0][0]
    show("Token-Sparse-Attention: MInference's logits are divided by sqrt(128) at any head dim",
         set(peer.lines(q, k, options)[0][0].tolist()) != set(right.tolist()),
         mine == set(right.tolist()))
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(PEERS), metavar="METHOD",
                        help=", ".join(PEERS))
    parser.add_argument("--checkouts", metavar="FOLDER", help="holds a checkout of each by name")
    parser.add_argument("--tokens", nargs="+", type=int, default=[2560, 5000])
    parser.add_argument("--backend", choices=("ref", "cpu", "cuda"), default="cpu")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--dim", type=int, default=128)
    args = parser.parse_args()
    for method in args.methods:
        if method not in PEERS:
            parser.error(f"METHOD: must be one of {', '.join(PEERS)}, got {method}")
    ours = Ours(args.backend)
    good = True
    for method in args.methods:
        for of_paper in (False, True):
            if of_paper and method not in OF_PAPER:
                continue
            peer = PEERS[method](args.checkouts, of_paper)
            for tokens in args.tokens:
                for composed in (False, True):
                    good = run_case(ours, peer, method, tokens, args, composed) and good
    good = known_faults(ours, args.checkouts) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
