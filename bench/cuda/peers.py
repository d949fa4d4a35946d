# SPDX-License-Identifier: MIT
"""What runs beside: dense attention by others, and the method's published code."""
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


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


def flash_attention_3():
    """FlashAttention-3's function of (q, k, v), or None where nobody installed it."""
    try:
        from flash_attn_interface import flash_attn_func
        return lambda q, k, v: flash_attn_func(q[None], k[None], v[None], causal=True)
    except ImportError:
        pass
    try:
        from vllm.vllm_flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    ends = {}

    def run(q, k, v):
        tokens = q.shape[0]
        if tokens not in ends:
            ends[tokens] = torch.tensor([0, tokens], dtype=torch.int32, device="cuda")
        return flash_attn_varlen_func(q, k, v, cu_seqlens_q=ends[tokens], cu_seqlens_k=ends[tokens],
                                      max_seqlen_q=tokens, max_seqlen_k=tokens, causal=True,
                                      fa_version=3)
    return run


def dense_peers(q, k, v):
    """Dense attention by others, {name: call}, of those that take these tensors."""
    peers = {}
    for label, backend in (("dense_cudnn", SDPBackend.CUDNN_ATTENTION),
                           ("dense_fa2", SDPBackend.FLASH_ATTENTION)):
        run = sdpa(backend, q, k, v)
        if run is not None:
            peers[label] = run
    fa3 = flash_attention_3()
    if fa3 is not None:
        try:
            fa3(q, k, v)
            peers["dense_fa3"] = lambda: fa3(q, k, v)
        except Exception as e:  # a build for another chip
            print(f"FlashAttention-3 does not run here: {str(e)[:100]}", flush=True)
    return peers


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


def beside_fa3(report):
    """{what: how many times as fast as FlashAttention-3's dense attention, in turn with it}"""
    found = {}
    for case in report["local_cases"] + report["cases"]:
        for key, turn in case.items():
            if not key.endswith("in_turn") or "dense_fa3" not in turn:
                continue
            share = case.get("share") or key[:-len("_in_turn")]
            kept = case.get("kept") or case[f"{share}_kept"]
            rows = "local" if "sink" in case else "zero"
            for label in ("prefill", "dense_ours"):
                if label in turn:
                    what = f"{case['shape']} {case['tokens']} {label}"
                    if label == "prefill":
                        what += f" {share}, {kept:.0%} kept, {rows}"
                    found[what] = turn["dense_fa3"]["ms"] / turn[label]["ms"]
    return found
