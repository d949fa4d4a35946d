# SPDX-License-Identifier: MIT
"""Every op on the GPU beside its floor, dense attention beside cuDNN and FlashAttention-2 (through
torch), and prefill beside them and beside a checkout of the method's own code, in one run on the
same tensors. Prints a table; --json writes the figures with card, driver and date."""
import argparse
import ctypes
import datetime
import json
import os
import pathlib
import subprocess
import sys

import torch
import torch.nn.functional as F
from measure import Machine, in_turn, milliseconds, peak_extra
from peers import beside_fa3, dense_peers, reference

ROOT = pathlib.Path(__file__).resolve().parents[2]

SHAPES = {"llama-8b": (32, 8, 128), "qwen-0.5b": (14, 2, 64), "qwen-1.5b": (12, 2, 128),
          "qwen-7b": (28, 4, 128), "llama-1b": (32, 8, 64)}


def workload(tokens, q_heads, kv_heads, dim, dtype):
    """q, k, v as [T, H, D]. A few directions carry the window's attention: tokens hold them with a
    heavy-tailed strength, so the kept share at a coverage is that of real heads, not of noise."""
    g = torch.Generator(device="cuda").manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=g, device="cuda", dtype=torch.float32)

    topic = F.normalize(normal(kv_heads, 1, dim), dim=-1)
    strength = normal(kv_heads, tokens, 1) * 2.5
    smooth = F.avg_pool1d(strength.transpose(1, 2), 9, 1, 4).transpose(1, 2) * 3
    k = normal(kv_heads, tokens, dim) * 0.6 + (0.5 * strength + smooth) * topic
    group = q_heads // kv_heads
    pull = topic.repeat_interleave(group, 0) * (dim ** 0.5) * 0.6
    q = normal(q_heads, tokens, dim) * 0.6 + pull * (0.75 + 0.5 * torch.rand(
        q_heads, 1, 1, generator=g, device="cuda"))
    v = normal(kv_heads, tokens, dim)
    return [t.to(dtype).transpose(0, 1).contiguous() for t in (q, k, v)]


def load_package(library):
    """The Python package of this checkout over a build of the library."""
    os.environ["TOKENSPARSE_LIBRARY"] = str(pathlib.Path(library).resolve())
    sys.path.insert(0, str(ROOT / "adapters/python/src"))
    import tokensparse._arrays
    import tokensparse._blocks
    import tokensparse._library

    return tokensparse


class Device:
    """The C ABI on torch's current stream: params are filled once, calls then cost no Python."""

    def __init__(self, package, isa=None):
        self.library, self._arrays = package._library, package._arrays
        self._blocks = package._blocks
        self._context = package.Context("cuda", isa=isa)
        self._context.set_stream(torch.cuda.current_stream().cuda_stream)
        self.isa = self._context.isa

    def view(self, x):
        """A torch tensor [tokens, heads, dim] of any strides as a tsp_tensor_t."""
        allowed = ("float32", "float16", "bfloat16")
        return self._arrays.tensor(self._arrays.view(x, "x"), "x", allowed=allowed)

    def sets(self, indices, kept):
        """[S, L] and [1] as index sets of one sequence."""
        sets, longest = indices.shape
        return self.library.IndexSets(indices.data_ptr(), kept.data_ptr(), sets, 0, longest,
                                      sets * longest)

    def pattern(self, kind, sets):
        """A block pattern with its method's own parameters."""
        return self._blocks.pattern_of(kind, sets, {}, [])

    def prepare(self, name, **fields):
        """Fills params and allocates the workspace; returns a call without arguments."""
        params = self.library.new_params(name)
        for field, value in fields.items():
            setattr(params, field, self.view(value) if torch.is_tensor(value) else value)
        memory, handle = None, self._context.handle
        if hasattr(params, "workspace"):
            size = ctypes.c_size_t()
            query = getattr(self.library.lib, f"tsp_{name}_workspace")
            self.library.check(query(handle, params, size))
            memory = torch.empty(size.value, dtype=torch.uint8, device="cuda")
            params.workspace, params.workspace_bytes = memory.data_ptr(), size.value
        op = getattr(self.library.lib, f"tsp_{name}")

        def run():
            self.library.check(op(handle, params))

        run.memory, run.params = memory, params
        return run


class Ours:
    """The ops one by one and as prefill, over one problem. `local`: rows that are left out attend to
    the first 64 keys and the last 256, else they are zeros."""

    def __init__(self, ctx, q, k, v, share, keep, local=False):
        tokens, q_heads, dim = q.shape
        kv_heads = k.shape[1]
        window = 128
        self.sets = {"head": q_heads, "kv_group": kv_heads, "layer": 1}[share]
        dev = dict(device="cuda")
        self.indices = torch.zeros(self.sets, tokens, dtype=torch.int32, **dev)
        self.kept = torch.zeros(1, dtype=torch.int32, **dev)
        self.scores = torch.zeros(q_heads, tokens - window, dtype=torch.float32, **dev)
        self.out = torch.full_like(q, float("nan"))
        selected = ctx.sets(self.indices, self.kept)
        scores = self.scores.t().unsqueeze(-1)
        share = ctx.library.SHARES[share]
        qkv = dict(q=q, k=k, v=v)
        dropped = dict(dropped=1, sink=64, band=256) if local else {}
        least = min(1024, tokens // 16)  # a short prompt too can keep few

        self.score = ctx.prepare("score", q=q, k=k, scores=scores)
        self.select = ctx.prepare("select", share=share, num_kv_heads=kv_heads, q_len=tokens,
                                  k_len=tokens, scores=scores, selected=selected, min_tokens=least)
        units = max(self.sets, kv_heads)
        self.score()
        self.rows, self.coverage = self.calibrate(self.select.params, keep * tokens)
        self.qc = torch.empty(q_heads, self.rows, dim, dtype=q.dtype, **dev)
        self.kc = torch.empty(units, self.rows, dim, dtype=q.dtype, **dev)
        self.vc = torch.empty_like(self.kc)
        packed = {f"{name}_out": x.transpose(0, 1)
                  for name, x in (("q", self.qc), ("k", self.kc), ("v", self.vc))}
        self.compress = ctx.prepare("compress", selected=selected, **qkv, **packed)
        self.decompress = ctx.prepare("decompress", k_len=tokens, in_=self.qc.transpose(0, 1),
                                      selected=selected, out=self.out)
        self.attend_dense = ctx.prepare("attend", out=self.out, **qkv)
        self.attend = ctx.prepare("attend", out=self.out, selected=selected, **qkv, **dropped)
        self.prefill = ctx.prepare("prefill", out=self.out, share=share, coverage=self.coverage,
                                   min_tokens=least, **qkv, **dropped)

    def calibrate(self, params, wanted):
        """The coverage that keeps the wanted tokens: the count is decided on the device, as in
        real use, not given."""
        low, high = 0.0, 1.0
        for _ in range(30):
            params.coverage = (low + high) / 2
            self.select()
            kept = int(self.kept.item())
            if abs(kept - wanted) <= 4:
                break
            low, high = (params.coverage, high) if kept > wanted else (low, params.coverage)
        return kept, params.coverage

    def steps(self):
        for step in (self.score, self.select, self.compress, self.decompress):
            step()


def bench_case(ctx, machine, name, tokens, shares, args, report):
    q_heads, kv_heads, dim = SHAPES[name]
    dtype = torch.bfloat16
    q, k, v = workload(tokens, q_heads, kv_heads, dim, dtype)
    case = {"shape": name, "tokens": tokens, "heads": [q_heads, kv_heads], "dim": dim}

    def put(key, fn, floor=None):
        median, low, high = milliseconds(fn)
        entry = {"ms": median, "min": low, "max": high}
        if floor:
            entry["floor_ms"] = floor
            entry["of_floor"] = floor / median
        case[key] = entry
        return median

    peers = dense_peers(q, k, v)
    if args.reference and name == "llama-8b":
        try:
            ref = reference(args.reference, q, k, v, args.keep)
            ref()
            case["reference_kept"] = ref.kept / tokens
            case["reference_extra_gib"] = peak_extra(ref) / 2 ** 30
            peers["reference"] = ref
        except Exception as e:  # its Triton code may not run on this machine's versions
            case["reference_error"] = str(e)[:200]
    for share in shares:
        ours = Ours(ctx, q, k, v, share, args.keep)
        rows = ours.rows
        row = dim * 2
        units = max(ours.sets, kv_heads)
        score_flops = 2 * 2 * 128 * tokens * dim * q_heads
        kv_rows = tokens * kv_heads if share == "head" else rows * kv_heads
        compress_bytes = row * (2 * rows * q_heads + 2 * kv_rows + 2 * rows * units)
        decompress_bytes = row * q_heads * (rows + tokens)
        p = f"{share}_"
        case[p + "kept"] = rows / tokens
        case[p + "coverage"] = ours.coverage
        put(p + "score", ours.score, machine.floor_ms(row * tokens * kv_heads, score_flops))
        put(p + "select", ours.select, machine.floor_ms(4 * q_heads * tokens + 4 * ours.sets * rows))
        put(p + "compress", ours.compress, machine.floor_ms(compress_bytes))
        put(p + "decompress", ours.decompress, machine.floor_ms(decompress_bytes))
        steps = put(p + "all_but_attend", ours.steps)
        put(p + "attend", ours.attend,
            machine.floor_ms(0, 4 * rows * (rows + 1) / 2 * dim * q_heads))
        case[p + "prefill_extra_gib"] = ours.prefill.memory.numel() / 2 ** 30
        runs = {"prefill": ours.prefill, **peers}
        if share == shares[0]:
            runs["dense_ours"] = ours.attend_dense
        turn = in_turn(runs, 7 if tokens > 65536 else 15)
        case[p + "in_turn"] = turn
        total = turn["prefill"]["ms"]
        times = {label: turn[label]["ms"] / total for label in peers}
        for label, ratio in times.items():
            case[f"{p}prefill_vs_{label}"] = ratio
        print(f"{name} {tokens:>7} {share:>8}: kept {rows / tokens:.3f}, all but attend "
              f"{steps:.3f} ms, prefill {total:.3f} ms, "
              + ", ".join(f"{ratio:.2f}x {label}" for label, ratio in times.items()), flush=True)
        del ours
        torch.cuda.empty_cache()
    report["cases"].append(case)


def bench_local(ctx, name, tokens, args, report):
    """What a model runs: a set per KV group, a quarter of the tokens kept, left-out rows local. The
    cost of those rows is what attend takes more than with zeros instead. `steps` are score, select,
    gather and scatter, one after the other."""
    q_heads, kv_heads, dim = SHAPES[name]
    q, k, v = workload(tokens, q_heads, kv_heads, dim, torch.bfloat16)
    zero = Ours(ctx, q, k, v, "kv_group", args.local_keep)
    local = Ours(ctx, q, k, v, "kv_group", args.local_keep, local=True)
    runs = {"prefill": local.prefill, "prefill_zero": zero.prefill, "attend": local.attend,
            "attend_zero": zero.attend, "dense_ours": local.attend_dense, **dense_peers(q, k, v),
            "steps": zero.steps, "score": zero.score, "select": zero.select,
            "gather": zero.compress, "scatter": zero.decompress}
    turn = in_turn(runs, 7 if tokens > 65536 else 15)
    total = turn["prefill"]["ms"]
    dense = {label: entry["ms"] for label, entry in turn.items() if label.startswith("dense")}
    best = min(dense, key=dense.get)
    case = {"shape": name, "tokens": tokens, "heads": [q_heads, kv_heads], "dim": dim,
            "share": "kv_group", "kept": local.rows / tokens, "sink": 64, "band": 256,
            "in_turn": turn, "left_out_ms": turn["attend"]["ms"] - turn["attend_zero"]["ms"],
            "best_dense": best, "speedup": dense[best] / total,
            "workspace_gib": local.prefill.memory.numel() / 2 ** 30}
    report["local_cases"].append(case)
    print(f"{name} {tokens:>7} local: kept {case['kept']:.3f}, prefill {total:.3f} ms, left-out rows "
          f"{case['left_out_ms']:.3f} ms, steps {turn['steps']['ms']:.3f} ms, " + ", ".join(
              f"{label} {ms:.3f} ms" for label, ms in dense.items())
          + f": {case['speedup']:.2f}x {best}", flush=True)


def bench_blocks(ctx, name, tokens, share, report):
    """Dense attention by lists of 128 x 128 blocks, chosen at random beside those on the diagonal, a
    list per head: what a step costs more than in the dense kernel."""
    q_heads, kv_heads, dim = SHAPES[name]
    q, k, v = workload(tokens, q_heads, kv_heads, dim, torch.bfloat16)
    tiles = (tokens + 127) // 128
    g = torch.Generator(device="cuda").manual_seed(3)
    read = torch.rand(q_heads, tiles, tiles, generator=g, device="cuda") < share
    read = (read | torch.eye(tiles, dtype=torch.bool, device="cuda")).tril()
    every = torch.arange(tiles, device="cuda")
    lists = torch.where(read, every, tiles).sort(-1).values.int().contiguous()
    counts = read.sum(-1).int().contiguous()
    blocks = ctx.library.BlockSets(
        blocks=lists.data_ptr(), counts=counts.data_ptr(), block=128, num_sets=q_heads,
        row_stride=tiles, set_stride=tiles * tiles, count_set_stride=tiles)
    out = torch.empty_like(q)
    runs = {"dense_ours": ctx.prepare("attend", q=q, k=k, v=v, out=out),
            "blocks": ctx.prepare("attend", q=q, k=k, v=v, out=out, blocks=blocks)}
    turn = in_turn(runs, 7 if tokens > 65536 else 15)
    part = int(counts.sum()) / (q_heads * tiles * (tiles + 1) / 2)
    ratio = turn["blocks"]["ms"] / turn["dense_ours"]["ms"] / part
    report["block_cases"].append({"shape": name, "tokens": tokens, "heads": [q_heads, kv_heads],
                                  "dim": dim, "share_of_blocks": part, "in_turn": turn,
                                  "of_dense_by_share": ratio})
    print(f"{name} {tokens:>7} blocks: {part:.3f} of them, {turn['blocks']['ms']:.3f} ms, dense "
          f"{turn['dense_ours']['ms']:.3f} ms: {ratio:.2f} times dense x share", flush=True)


def bench_patterns(ctx, name, tokens, report):
    """Each block pattern: its estimate and attention by its lists, beside dense attention."""
    q_heads, kv_heads, dim = SHAPES[name]
    q, k, v = workload(tokens, q_heads, kv_heads, dim, torch.bfloat16)
    tiles = (tokens + 127) // 128

    def room(*shape):
        return torch.zeros(shape, dtype=torch.int32, device="cuda")

    lists, counts = room(q_heads, tiles, tiles), room(q_heads, tiles)
    columns, num_columns = room(q_heads, tokens), room(q_heads)
    named = dict(blocks=lists.data_ptr(), counts=counts.data_ptr(), block=128, num_sets=q_heads,
                 row_stride=tiles, set_stride=tiles * tiles, count_set_stride=tiles)
    out = torch.empty_like(q)
    dense = ctx.prepare("attend", q=q, k=k, v=v, out=out)
    for kind in ("xattention", "flexprefill", "minference", "pooled", "flash"):
        pattern = ctx.pattern(kind, q_heads)
        with_columns = ctx.library.BlockSets(
            **named, columns=columns.data_ptr(), num_columns=num_columns.data_ptr(),
            column_set_stride=tokens)
        runs = {"dense_ours": dense,
                "estimate": ctx.prepare("estimate", q=q, k=k, pattern=pattern,
                                        blocks=with_columns)}
        runs["estimate"]()
        part = int(counts.sum()) / (q_heads * tiles * (tiles + 1) / 2)
        if kind != "minference":  # its single columns are not attended here
            blocks = ctx.library.BlockSets(**named)
            runs["blocks"] = ctx.prepare("attend", q=q, k=k, v=v, out=out, blocks=blocks)
            runs["prefill"] = ctx.prepare("prefill", q=q, k=k, v=v, out=out, coverage=0.0,
                                          pattern=pattern)
        turn = in_turn(runs, 7 if tokens > 65536 else 15)
        extra = runs["estimate"].memory.numel() / 2 ** 30
        report["pattern_cases"].append({"shape": name, "tokens": tokens, "pattern": kind,
                                        "heads": [q_heads, kv_heads], "dim": dim,
                                        "share_of_blocks": part, "estimate_extra_gib": extra,
                                        "in_turn": turn})
        dense_ms = turn["dense_ours"]["ms"]
        print(f"{name} {tokens:>7} {kind:11} {part:.3f} of the blocks, " + ", ".join(
            f"{label} {entry['ms']:.3f} ms ({entry['ms'] / dense_ms:.3f} of dense)"
            for label, entry in turn.items() if label != "dense_ours"), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", default="build/cuda/src/libtokensparse.so")
    parser.add_argument("--isa", help="sm_90 = own kernels only; default the best")
    parser.add_argument("--shapes", nargs="+", default=["llama-8b", "qwen-0.5b"],
                        choices=list(SHAPES))
    parser.add_argument("--tokens", nargs="*", type=int, default=[8192, 32768, 131072])
    parser.add_argument("--shares", nargs="+", default=["head", "kv_group"])
    parser.add_argument("--keep", type=float, default=0.45)
    parser.add_argument("--local-tokens", nargs="*", type=int,
                        default=[2048, 4096, 8192, 32768, 131072])
    parser.add_argument("--block-tokens", nargs="*", type=int, default=[8192, 32768, 131072])
    parser.add_argument("--pattern-tokens", nargs="*", type=int, default=[8192, 32768, 131072])
    parser.add_argument("--block-share", type=float, default=0.25)
    parser.add_argument("--local-keep", type=float, default=0.25)
    parser.add_argument("--reference", help="checkout of the method's published code")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(1)
    stream = torch.cuda.Stream()
    torch.cuda.set_stream(stream)
    ctx = Device(load_package(args.library), args.isa)
    machine = Machine()
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                            capture_output=True, text=True, check=False).stdout.strip()
    report = {"card": torch.cuda.get_device_name(), "driver": driver, "engine": ctx.isa,
              "date": datetime.date.today().isoformat(), "torch": torch.__version__,
              "cudnn": torch.backends.cudnn.version(), "keep": args.keep,
              "copy_tb_per_s": machine.bytes_per_s / 1e12, "matmul_tflops": machine.flops / 1e12,
              "local_keep": args.local_keep, "cases": [], "local_cases": [], "block_cases": [],
              "pattern_cases": []}
    print(f"{report['card']}, {ctx.isa}, copy {report['copy_tb_per_s']:.2f} TB/s, matmul "
          f"{report['matmul_tflops']:.0f} TFLOP/s", flush=True)

    def save():
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(report, file, indent=1)

    for name in args.shapes:
        for tokens in args.local_tokens:
            bench_local(ctx, name, tokens, args, report)
            torch.cuda.empty_cache()
            save()
        for tokens in args.block_tokens:
            bench_blocks(ctx, name, tokens, args.block_share, report)
            torch.cuda.empty_cache()
            save()
        for tokens in args.pattern_tokens:
            bench_patterns(ctx, name, tokens, report)
            torch.cuda.empty_cache()
            save()
        for tokens in args.tokens:
            bench_case(ctx, machine, name, tokens, args.shares, args, report)
            save()
    report["times_as_fast_as_fa3"] = beside_fa3(report)
    save()
    for what, ratio in report["times_as_fast_as_fa3"].items():
        print(f"{ratio:6.2f} x FlashAttention-3: {what}")
    for case in report["cases"]:
        print(f"\n{case['shape']}, {case['tokens']} tokens")
        for key, value in case.items():
            if key.endswith("in_turn"):
                for label, entry in value.items():
                    print(f"  {key + ' ' + label:26} {entry['ms']:9.4f} ms  ({entry['min']:.4f} .. "
                          f"{entry['max']:.4f})")
            elif isinstance(value, dict):
                share = f"{value['of_floor'] * 100:5.1f} % of floor" if "of_floor" in value else ""
                print(f"  {key:26} {value['ms']:9.4f} ms  ({value['min']:.4f} .. "
                      f"{value['max']:.4f})  {share}")
            elif isinstance(value, float):
                print(f"  {key:26} {value:9.4f}")


if __name__ == "__main__":
    main()
