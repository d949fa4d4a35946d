#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Which blocks the methods' own published code reads, beside what tsp_estimate() lists, on the same
tensors: alone, and on the kept tokens of every head. Prints a line for each case and exits with 1
where a map differs in what docs/blocks.md does not say.

usage: block_maps.py [METHOD...] [--checkouts FOLDER] [--tokens N...] [--backend ref|cpu|cuda]
Their repositories are cloned at the commits below (git and the network; a few MB of each are kept in
the cache), or taken from FOLDER/NAME. Their Python runs on the CPU in f32, their Triton code in
Triton's interpreter. Needs torch, triton, einops and the package `tokensparse` with its library
(TOKENSPARSE_LIBRARY); none of it is changed, but "cuda" means "cpu" while their code runs.
"""
import argparse
import contextlib
import importlib.util
import math
import os
import pathlib
import subprocess
import sys
import types

os.environ["TRITON_INTERPRET"] = "1"
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "adapters/python/src"))

import torch  # noqa: E402

import tokensparse  # noqa: E402

REPOSITORIES = {
    "x-attention": ("mit-han-lab/x-attention", "e37988770b9d1bebd489eba011d615f35587ba08"),
    "FlexPrefill": ("ByteDance-Seed/FlexPrefill", "a24b27bf117fd6ad4ba34b0db82c598e7786fd59"),
    "MInference": ("microsoft/MInference", "fb56c917f618e8645f1cfc37535afd7424d78f0d"),
    "SpargeAttn": ("thu-ml/SpargeAttn", "bfd980b781784c04ad6a53e7ee657c0645d99171"),
    "FlashPrefill": ("qhfan/FlashPrefill", "74e42f3d4f636b4f0744c6ffbb7768d35bb0d10e"),
    "Token-Sparse-Attention": (
        "dongwonjo/Token-Sparse-Attention", "17b64cbb573fb7c82bd1836d32fade8d17ae1e54"),
}
BLOCK = 128
CHUNK = 512  # of their XAttention; not its first rows, whose column 0 they lose


def checkout(name, folder):
    """Where a repository's files lie, fetched at its commit where nobody names a folder."""
    if folder is not None:
        return pathlib.Path(folder) / name
    repository, commit = REPOSITORIES[name]
    cache = pathlib.Path(os.environ.get("TOKENSPARSE_CACHE") or pathlib.Path(
        os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tokensparse")
    path = cache / f"{name}-{commit[:12]}"
    if not (path / ".complete").exists():
        path.mkdir(parents=True, exist_ok=True)
        git = ["git", "-C", str(path)]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "fetch", "-q", "--depth", "1", "--filter=blob:limit=1m",
                        f"https://github.com/{repository}", commit], check=True)
        subprocess.run([*git, "checkout", "-q", commit], check=True)
        (path / ".complete").touch()
    return path


class Stub(types.ModuleType):
    """A module that their code imports and the selection of blocks does not use."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: args[0] if len(args) == 1 and callable(args[0]) else None


@contextlib.contextmanager
def on_cpu():
    """Their code asks for "cuda" by name."""
    plain = {name: getattr(torch, name) for name in ("arange", "zeros", "ones", "full", "compile")}
    to, cuda = torch.Tensor.to, torch.Tensor.cuda

    def here(make):
        def run(*args, **kwargs):
            if str(kwargs.get("device", "")).startswith("cuda"):
                kwargs["device"] = "cpu"
            return make(*args, **kwargs)

        return run

    for name in ("arange", "zeros", "ones", "full"):
        setattr(torch, name, here(plain[name]))
    # Their torch.compile'd functions run as they are written.
    torch.compile = lambda fn=None, **_: fn if fn is not None else (lambda f: f)
    torch.Tensor.to = lambda x, *args, **kwargs: to(
        x, *("cpu" if a == "cuda" else a for a in args), **kwargs)
    torch.Tensor.cuda = lambda x, *args, **kwargs: x
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(torch, name, function)
        torch.Tensor.to, torch.Tensor.cuda = to, cuda


def load(path, name, stubs=()):
    """A file of theirs as a module, with `stubs` in place of what it imports."""
    for stub in stubs:
        parts = stub.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), Stub(".".join(parts[:i])))
            sys.modules[".".join(parts[:i])].__path__ = []
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with on_cpu():
        spec.loader.exec_module(module)
    return module


def package(path, name):
    """A folder of theirs whose modules are found by name, without its __init__."""
    module = types.ModuleType(name)
    module.__path__ = [str(path)]
    sys.modules[name] = module


# Each answers for one set of tensors [heads, tokens, D] with a map [heads, query blocks, key blocks].


class XAttention:
    """xattn_estimate() of the authors, or of the paper that composes it with token selection."""

    options = {"stride": 16, "threshold": 0.9}

    def __init__(self, folder, composed):
        if composed:
            path = checkout("Token-Sparse-Attention", folder)
            package(path / "sparse_attn", "sparse_attn")
            package(path / "sparse_attn/xattention", "sparse_attn.xattention")
            file, self.name = path / "sparse_attn/xattention/xattention.py", "xattention_of_paper"
        else:
            path = checkout("x-attention", folder)
            package(path / "xattn", "xattn")
            package(path / "xattn/src", "xattn.src")
            file, self.name = path / "xattn/src/Xattention.py", "xattention"
        self.module = load(file, f"{self.name}_code", ["block_sparse_attn"])

    def map(self, q, k, options):
        # Chunks that the tokens are no multiple of, where they hide all but the last chunk.
        tokens = k.shape[1]
        return self.by_chunks(q, k, options, CHUNK if tokens % CHUNK else CHUNK - BLOCK)

    def by_chunks(self, q, k, options, chunk):
        with on_cpu():
            _, found = self.module.xattn_estimate(
                q[None], k[None], block_size=BLOCK, stride=options["stride"],
                threshold=options["threshold"], chunk_size=chunk, use_triton=False, causal=True)
        n = -(-k.shape[1] // BLOCK)
        return found[0, :, :n, :n]


class FlexPrefill:
    """get_active_blocks() of the authors, or of the paper."""

    options = {"gamma": 0.95, "tau": 0.1, "min_budget": 1024}

    def __init__(self, folder, composed):
        path = checkout("Token-Sparse-Attention" if composed else "FlexPrefill", folder)
        file = path / ("sparse_attn/flexprefill/flexprefill.py" if composed
                       else "flex_prefill/ops/flex_prefill_attention.py")
        self.name = "flexprefill_of_paper" if composed else "flexprefill"
        self.module = load(file, f"{self.name}_code",
                           ["flash_attn"] if composed else ["transformers.utils"])

    def map(self, q, k, options):
        tokens = q.shape[1]
        budget = -(-options["min_budget"] // BLOCK)
        self.module.causal_mask = None  # it remembers that of the first block size
        with on_cpu():
            found = self.module.get_active_blocks(
                q.transpose(0, 1)[None], k.transpose(0, 1)[None], None, BLOCK, options["gamma"],
                budget, 1 << 30, options["tau"])
        n = -(-tokens // BLOCK)
        result = torch.zeros(q.shape[0], n * n, dtype=torch.bool)
        for h in range(q.shape[0]):
            result[h, found[0][h].long()] = True
        return result.view(-1, n, n)


class MInference:
    """The vertical and slash lines of the authors (minference_prefill_kernel()), or of the paper's
    Minference_prefill(): what their kernel would be given. A slash is made of the 128 x 128 blocks
    that it crosses, as ours are; theirs are 64 long and begin anywhere."""

    options = {"vertical": 300, "slash": 500}

    def __init__(self, folder, composed):
        kernel = "minference.ops.pit_sparse_flash_attention_v2"
        self.name = "minference_of_paper" if composed else "minference"
        self.composed = composed
        if composed:
            path = checkout("Token-Sparse-Attention", folder)
            self.module = load(path / "sparse_attn/minference/minference.py", f"{self.name}_code",
                               [kernel])
            return
        path = checkout("MInference", folder) / "minference/modules/minference_forward.py"
        # Its module imports half of vLLM; the function and what it uses are these statements.
        import ast
        text = path.read_text(encoding="utf-8")
        wanted = {"sum_all_diagonal_matrix", "minference_prefill_kernel", "last_q", "arange",
                  "LAST_Q_MASK"}
        kept = [node for node in ast.parse(text).body
                if (isinstance(node, ast.FunctionDef) and node.name in wanted)
                or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in wanted)]
        self.module = types.ModuleType(f"{self.name}_code")
        self.module.torch, self.module.math = torch, math
        with on_cpu():
            exec(compile(ast.Module(kept, []), str(path), "exec"), self.module.__dict__)

    def lines(self, q, k, options):
        """[(columns, slashes)] of every head."""
        found = []

        def take(q, _k, _v, columns, slashes):
            found.append((columns.flatten(), slashes.flatten()))
            return q

        self.module.vertical_slash_sparse_attention = take
        with on_cpu():
            if self.composed:
                self.module.Minference_prefill(q[None], k[None], k[None], options["vertical"],
                                               options["slash"])
            else:
                config = {"best_pattern": [{"0": ("vertical_and_slash", options["vertical"],
                                                  options["slash"], 1)}]}
                self.module.streaming_forward = self.module.block_sparse_attention = None
                for h in range(q.shape[0]):
                    self.module.minference_prefill_kernel(
                        q[None, h:h + 1], k[None, h:h + 1], k[None, h:h + 1], "0", 0, config)
        return found

    def map(self, q, k, options):
        tokens = q.shape[1]
        n = -(-tokens // BLOCK)
        result = torch.zeros(q.shape[0], n, n, dtype=torch.bool)
        rows = torch.arange(tokens)
        for h, (_, slashes) in enumerate(self.lines(q, k, options)):
            for d in slashes.tolist():
                result[h, rows[d:] // BLOCK, (rows[d:] - d) // BLOCK] = True
        return result


class SpargeAttn:
    """get_block_map_meansim() of the authors, without its test of a block's similarity (-1), in
    blocks of 128 x 128."""

    options = {"threshold": 0.9}
    name = "pooled"

    def __init__(self, folder, composed):
        path = checkout("SpargeAttn", folder) / "spas_sage_attn/utils.py"
        self.module = load(path, "sparge_code")

    def map(self, q, k, options):
        with on_cpu():
            return self.module.get_block_map_meansim(
                q[None], k[None], is_causal=True, BLKQ=BLOCK, BLKK=BLOCK, simthreshd1=-1.0,
                cdfthreshd=options["threshold"])[0].bool()


class FlashPrefill:
    """The scores and the choice of the authors' first version."""

    options = {"alpha": 0.1}
    name = "flash"

    def __init__(self, folder, composed):
        path = checkout("FlashPrefill", folder) / "ops/flashprefill_native_forward.py"
        self.module = load(path, "flash_code", ["fla.utils"])

    def map(self, q, k, options):
        heads, tokens, dim = q.shape
        n = -(-tokens // BLOCK)
        m = self.module
        q, k = (x.transpose(0, 1)[None].contiguous() for x in (q, k))
        means = torch.empty(1, n, heads, dim)
        score = torch.full((1, n, n, heads), -math.inf)
        top = score.clone()
        with on_cpu():
            m.compute_mean_vector.fn[(n, heads, 1)](
                k, means, *k.stride(), *means.stride(), heads, tokens, BLOCK, dim)
            m.compute_block_score.fn[(n, heads, 1)](
                q, means, dim ** -0.5, score, top, *q.stride(), *means.stride(), *score.stride(),
                *top.stride(), heads, heads, tokens, n, BLOCK, K_TILE_SIZE=64, K_STRIDE=BLOCK,
                D_HEAD=dim)
            lists, counts = m.deal_output_score(m.normalize_scores(score, top), 2, 4,
                                                options["alpha"], 2, 0)
        result = torch.zeros(heads, n, n, dtype=torch.bool)
        for h in range(heads):
            for row in range(n):
                result[h, row, lists[0, row, :counts[0, row, h], h]] = True
        return result


PEERS = {"xattention": XAttention, "flexprefill": FlexPrefill, "minference": MInference,
         "pooled": SpargeAttn, "flash": FlashPrefill}
OF_PAPER = ("xattention", "flexprefill", "minference")


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
            result[s, m, torch.as_tensor(lists.blocks[of, s, m, :int(lists.counts[of, s, m])]).long()] = True
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
