# SPDX-License-Identifier: MIT
"""The published code of block patterns, for block_maps.py: fetched, loaded, asked for its map."""
import ast
import contextlib
import importlib.util
import math
import os
import pathlib
import subprocess
import sys
import types

import torch

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


# Each answers for tensors [heads, tokens, D] with a map [heads, query blocks, key blocks].


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
