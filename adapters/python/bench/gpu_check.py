# SPDX-License-Identifier: MIT
"""The Python package on a GPU: operations, streams, CUDA graphs, torch operators, transformers, and
vLLM's CUSTOM backend on paged caches.

usage: gpu_check.py [MODEL]; MODEL is a folder, `random` (default) has Qwen2.5-0.5B's shape
From a checkout, without an install:
    PYTHONPATH=adapters/python/src TOKENSPARSE_LIBRARY=build/cuda/src/libtokensparse.so \\
        python3 adapters/python/bench/gpu_check.py
Needs torch with CUDA, and transformers and vLLM for the last checks; without vLLM that check is
skipped, and said so. TOKENSPARSE_PROGRAM names the program, whose `apply` is compared too. Ends
with "N passed, N failed".
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from ttft_transformers import load

import tokensparse
import tokensparse.torch

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def tensors(q_len=900, k_len=1100, dtype=torch.bfloat16, dim=64):
    made = torch.Generator().manual_seed(3)
    shapes = ((q_len, 8, dim), (k_len, 2, dim), (k_len, 2, dim))
    return [torch.randn(shape, generator=made).to(dtype) for shape in shapes]


SPARSE = dict(keep=0.5, window=64, min_tokens=64, share="kv_group")


@check
def dense_attention_equals_the_specification():
    reference = tokensparse.Context("ref")
    for dtype in (torch.bfloat16, torch.float16):
        host = tensors(dtype=dtype)
        out, lse = tokensparse.attend(*(x.cuda() for x in host), return_lse=True)
        expected, expected_lse = tokensparse.attend(*host, return_lse=True, context=reference)
        torch.testing.assert_close(out.cpu().float(), expected.float(), atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(lse.cpu(), expected_lse, atol=2e-2, rtol=1e-3)


@check
def estimates_list_what_the_specification_does():
    reference = tokensparse.Context("ref")
    q, k, _ = tensors(q_len=500, k_len=700)
    for pattern in ("xattention", "flexprefill", "minference", "pooled", "flash"):
        own = dict(flexprefill=dict(min_budget=32), minference=dict(vertical=40, slash=60))
        options = dict(block=16, **own.get(pattern, {}))
        found = [
            tokensparse.estimate(*where, pattern, context=context, **options)
            for where, context in (((q.cuda(), k.cuda()), None), ((q, k), reference))
        ]
        maps = []
        for lists in found:
            wide = torch.zeros(*lists.blocks.shape[:3], 44 + 1, dtype=torch.bool)
            at = torch.arange(lists.blocks.shape[3])
            there = at < lists.counts.cpu()[..., None]
            wide.scatter_(3, lists.blocks.cpu().long().where(there, torch.tensor(44)), True)
            maps.append(wide[..., :44])
        apart = (maps[0] ^ maps[1]).sum() / maps[1].sum()
        assert apart < 0.01, f"{pattern}: {float(apart):.3f} of the blocks differ"


@check
def sparse_prefill_equals_the_specification():
    host = tensors()
    out, found = tokensparse.prefill(*(x.cuda() for x in host), return_selection=True, **SPARSE)
    sets = tokensparse.Selection(found.indices.cpu(), found.kept.cpu())
    reference = tokensparse.Context("ref")
    expected, wanted = tokensparse.prefill(
        *host, return_selection=True, context=reference, **SPARSE
    )
    assert sets.kept.tolist() == wanted.kept.tolist()
    for index in range(2):  # scores added in another order may swap tokens at the edge of a set
        ours, theirs = set(sets.tokens(set=index).tolist()), set(wanted.tokens(set=index).tolist())
        assert len(ours ^ theirs) <= 0.01 * len(theirs), f"{len(ours ^ theirs)} tokens differ"
    same_sets = tokensparse.attend(*host, sets, context=reference)
    torch.testing.assert_close(out.cpu().float(), same_sets.float(), atol=2e-2, rtol=2e-2)
    assert expected.shape == out.shape


@check
def calls_follow_the_current_stream():
    device = [x.cuda() for x in tensors(4096, 4096)]
    expected = tokensparse.prefill(*device, **SPARSE)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    delayed = [torch.zeros_like(x) for x in device]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # the copies below are late; the call must be later
        for late, x in zip(delayed, device):
            late.copy_(x)
        out = tokensparse.prefill(*delayed, **SPARSE)
    stream.synchronize()
    assert torch.equal(out, expected)


@check
def a_prefill_can_be_captured_in_a_cuda_graph():
    device = [x.cuda() for x in tensors(2048, 2048)]
    out = torch.empty_like(device[0])
    tokensparse.prefill(*device, out=out, **SPARSE)
    expected = out.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokensparse.prefill(*device, out=out, **SPARSE)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


@check
def paged_keys_and_values():
    q, k, v = (x.cuda() for x in tensors(200, 500))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))[:32].int()
    cache = torch.full((40, 2, 16, 2 * 64), float("nan"), device="cuda", dtype=k.dtype)
    for i, block in enumerate(order.tolist()):
        rows = slice(16 * i, min(16 * i + 16, 500))
        count = max(rows.stop - rows.start, 0)
        cache[block, :, :count, :64] = k[rows].transpose(0, 1)
        cache[block, :, :count, 64:] = v[rows].transpose(0, 1)
    k_pages, v_pages = cache.transpose(1, 2).split(64, dim=-1)
    table = order[None].cuda()
    out = tokensparse.prefill(
        q,
        tokensparse.Paged(k_pages, table),
        tokensparse.Paged(v_pages, table),
        q_offsets=[0, 200],
        k_offsets=[0, 500],
        **SPARSE,
    )
    expected = tokensparse.prefill(q, k, v, **SPARSE)
    torch.testing.assert_close(out.float(), expected.float(), atol=1e-2, rtol=1e-2)


@check
def bad_tensors_name_the_argument():
    q, k, v = (x.cuda() for x in tensors())
    try:
        tokensparse.prefill(q, k.cpu(), v)
    except tokensparse.InvalidArgument as error:
        assert "k: must be on cuda:0 like q, is on cpu" in str(error), error
    else:
        raise AssertionError("a device mix was accepted")


@check
def torch_operators():
    device = tuple(x.cuda() for x in tensors())
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(tokensparse.torch.prefill, device, SPARSE, test_utils=tests)


@check
def transformers_exact_equals_stock():
    import tokensparse.transformers as ts

    name = sys.argv[1] if len(sys.argv) > 1 else "random"
    model = load(name, torch.bfloat16, "cuda")
    ids = torch.randint(1, 50000, (1, 4096), generator=torch.Generator().manual_seed(1)).cuda()
    logits = {}
    with torch.no_grad():
        for kind in ("sdpa", "eager", ts.NAME):
            model.set_attn_implementation(kind)
            logits[kind] = model(ids, logits_to_keep=512).logits.float()
    report = ts.report(model)
    assert all(layer.served == 1 for layer in report), str(report)
    floor = (logits["eager"] - logits["sdpa"]).square().mean().sqrt().item()
    ours = (logits[ts.NAME] - logits["sdpa"]).square().mean().sqrt().item()
    print(f"   logits, RMS: ours from sdpa {ours:.5f}, eager from sdpa {floor:.5f}")
    assert ours <= 1.5 * floor, f"{ours} against {floor}"

    ts.configure(model, keep=0.6, layers=range(7, 16), min_keys=0, min_rows=2)
    with torch.no_grad():
        model.generate(ids, max_new_tokens=4, do_sample=False)
    kept = ts.report(model).kept_share
    assert 0.55 < kept < 0.65, kept


def captured(model, ids, layer):
    """q, k, v as a layer's attention saw them, [tokens, heads, dim], and what it returned."""
    import tokensparse.transformers as ts

    seen, prefill = [], ts.methods.ops.prefill

    def spy(q, k, v, **options):
        results = prefill(q, k, v, **options)
        seen.append([x.clone() for x in (q, k, v, options["out"])])
        return results

    ts.methods.ops.prefill = spy
    try:
        with torch.no_grad():
            model(ids, logits_to_keep=1)
    finally:
        ts.methods.ops.prefill = prefill
    return seen[layer]


@check
def transformers_sparse_equals_prefill_and_apply():
    import safetensors.torch

    import tokensparse.transformers as ts

    model = load(sys.argv[1] if len(sys.argv) > 1 else "random", torch.bfloat16, "cuda")
    model.set_attn_implementation(ts.NAME)
    options = dict(coverage=0.2, share="kv_group", dropped="zero")
    ts.configure(model, layers=[9], min_keys=0, min_rows=2, **options)
    ids = torch.randint(1, 50000, (1, 3000), generator=torch.Generator().manual_seed(2)).cuda()
    q, k, v, out = captured(model, ids, 9)
    assert ts.report(model).kept_share < 1
    assert torch.equal(out, tokensparse.prefill(q, k, v, **options))
    program = os.environ.get("TOKENSPARSE_PROGRAM")
    if not program:
        print("   TOKENSPARSE_PROGRAM is not set: not compared with the program's apply")
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/in.safetensors", "--out", f"{folder}/out.safetensors"]
        tensors = {name: x.contiguous().cpu() for name, x in (("q", q), ("k", k), ("v", v))}
        safetensors.torch.save_file(tensors, files[0])
        arguments = ["--coverage", "0.2", "--share", "kv_group", "--dropped", "zero"]
        arguments += ["--backend", "cuda"]
        subprocess.run([program, "apply", *files, *arguments], check=True, timeout=120)
        applied = safetensors.torch.load_file(files[2])["out"]
    torch.testing.assert_close(applied.to(out.dtype), out.cpu(), atol=0, rtol=0)


@check
def vllm_backend_on_paged_caches():
    if importlib.util.find_spec("vllm") is None:
        print("   vLLM is not installed: skipped")
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import vllm_backend

    with tempfile.TemporaryDirectory() as folder:
        vllm_backend.check(folder, "cuda")


def main():
    if not torch.cuda.is_available():
        sys.exit("gpu_check.py: torch finds no CUDA device")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    failed = 0
    for function in CHECKS:
        try:
            function()
            print("[       OK ]", function.__name__, flush=True)
        except Exception:  # noqa: BLE001  every check has its turn
            failed += 1
            print("[  FAILED  ]", function.__name__, flush=True)
            traceback.print_exc()
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
