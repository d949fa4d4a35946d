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
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = pathlib.Path(__file__).resolve().parents[2]

SHAPES = {"llama-8b": (32, 8, 128), "qwen-0.5b": (14, 2, 64)}


def milliseconds(fn, budget_s=0.4, least=5):
    """Median and spread of device time; the caches are as the last call left them, and every tensor
    here is far larger than L2."""
    fn()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    fn()
    end.record()
    torch.cuda.synchronize()
    repeats = max(least, min(50, int(budget_s * 1e3 / max(start.elapsed_time(end), 1e-3))))
    events = [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(repeats)]
    for a, b in events:
        a.record()
        fn()
        b.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in events)
    return statistics.median(times), times[0], times[-1]


def in_turn(runs, rounds):
    """Medians of several calls, one after the other in every round. Each starts from the same state:
    a chip that had a moment to cool, and a queue that is filled before the clock starts."""
    for fn in runs.values():
        fn()
    events = {name: [] for name in runs}
    for _ in range(rounds):
        for name, fn in runs.items():
            torch.cuda.synchronize()
            time.sleep(0.04)
            a, b = torch.cuda.Event(True), torch.cuda.Event(True)
            torch.cuda._sleep(2_000_000)  # about a millisecond, in which the calls are enqueued
            a.record()
            fn()
            b.record()
            events[name].append((a, b))
    torch.cuda.synchronize()
    medians = {}
    for name, pairs in events.items():
        times = sorted(a.elapsed_time(b) for a, b in pairs)
        medians[name] = {"ms": statistics.median(times), "min": times[0], "max": times[-1]}
    return medians


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


class Machine:
    """Ceilings measured here and now."""

    def __init__(self):
        a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        b = torch.empty_like(a)
        self.bytes_per_s = 2 * a.numel() / milliseconds(lambda: b.copy_(a))[0] * 1e3
        x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        self.flops = 2 * 8192 ** 3 / milliseconds(lambda: x @ x)[0] * 1e3

    def floor_ms(self, num_bytes, flops=0.0):
        return max(num_bytes / self.bytes_per_s, flops / self.flops) * 1e3


def sdpa(backend, q, k, v):
    """Dense causal attention of [H, T, D] tensors through torch, or None where it refuses."""
    args = [t.transpose(0, 1)[None] for t in (q, k, v)]
    gqa = q.shape[1] != k.shape[1]

    def run():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*args, is_causal=True, enable_gqa=gqa)

    try:
        run()
    except RuntimeError:
        return None
    return run


def load_package(library):
    """The Python package of this checkout over a build of the library."""
    os.environ["TOKENSPARSE_LIBRARY"] = str(pathlib.Path(library).resolve())
    sys.path.insert(0, str(ROOT / "adapters/python/src"))
    import tokensparse._arrays
    import tokensparse._library

    return tokensparse


class Device:
    """The C ABI on torch's current stream: params are filled once, calls then cost no Python."""

    def __init__(self, package, isa=None):
        self.library, self._arrays = package._library, package._arrays
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
    """The ops one by one and as prefill, over one problem."""

    def __init__(self, ctx, q, k, v, share, keep):
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

        self.score = ctx.prepare("score", q=q, k=k, scores=scores)
        self.select = ctx.prepare("select", share=share, num_kv_heads=kv_heads, q_len=tokens,
                                  k_len=tokens, scores=scores, selected=selected)
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
        self.attend = ctx.prepare("attend", out=self.out, selected=selected, **qkv)
        self.prefill = ctx.prepare("prefill", out=self.out, share=share, coverage=self.coverage,
                                   **qkv)

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


def reference(checkout, q, k, v, keep):
    """The method's published code on the same tensors (repeated K and V are part of it)."""
    sys.path.insert(0, checkout)
    from sparse_attn.token_sparse.sparse_cluster import SparseCluster, repeat_kv
    tokens = q.shape[0]
    cluster = SparseCluster()
    cluster.window_size, cluster.kernel_size, cluster.min_tokens = 128, 7, 1024
    q4, k4, v4 = (t.transpose(0, 1)[None] for t in (q, k, v))
    group = q.shape[1] // k.shape[1]
    # Its coverage that keeps what we keep, so that both attend to as many tokens.
    wanted = int(keep * tokens)
    low, high = 0.0, 1.0
    kr = repeat_kv(k4, group)
    for _ in range(24):
        cluster.coverage = (low + high) / 2
        indices = cluster.get_index(q4, kr)
        kept = tokens if indices is None else indices.shape[-1]
        low, high = (cluster.coverage, high) if kept > wanted else (low, cluster.coverage)
        if abs(kept - wanted) <= 8:
            break

    def run(parts=None):
        kr, vr = repeat_kv(k4, group), repeat_kv(v4, group)
        indices = cluster.get_index(q4, kr)
        qc, kc, vc = cluster.compress_qkv(q4, kr, vr, indices)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            out = F.scaled_dot_product_attention(qc, kc, vc, is_causal=True)
        return cluster.decompress_output(out.transpose(1, 2), indices)

    run.kept = kept
    return run


def peak_extra(fn):
    """Bytes that torch allocates during a call, beyond what lives before it."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    keep = fn()
    torch.cuda.synchronize()
    del keep
    return torch.cuda.max_memory_allocated() - before


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

    peers = {}
    for label, backend in (("dense_cudnn", SDPBackend.CUDNN_ATTENTION),
                           ("dense_fa2", SDPBackend.FLASH_ATTENTION)):
        run = sdpa(backend, q, k, v)
        if run is not None:
            peers[label] = run
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", default="build/cuda/src/libtokensparse.so")
    parser.add_argument("--isa", help="sm_90 = own kernels only; default the best")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192, 32768, 131072])
    parser.add_argument("--shares", nargs="+", default=["head", "kv_group"])
    parser.add_argument("--keep", type=float, default=0.45)
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
              "cases": []}
    print(f"{report['card']}, {ctx.isa}, copy {report['copy_tb_per_s']:.2f} TB/s, matmul "
          f"{report['matmul_tflops']:.0f} TFLOP/s", flush=True)
    for name in args.shapes:
        for tokens in args.tokens:
            bench_case(ctx, machine, name, tokens, args.shares, args, report)
            if args.json:
                with open(args.json, "w", encoding="utf-8") as file:
                    json.dump(report, file, indent=1)
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
