# SPDX-License-Identifier: MIT
"""The CPU backend: prompt rows by tokensparse from the paged cache, the rest by the stock kernel."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import torch
from vllm import _custom_ops as vllm_ops
from vllm import envs
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
)

from .._library import Unsupported
from .._report import SMALL
from .exact import ExactRun
from .steps import SHORT, Layer, Run, Step, plan, publish_behind, serve_step, serve_the_rest

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DECODE = Step((), ())


def halves(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of a cache [num_blocks, kv heads, block, 2 dim], each [num_blocks, heads, block, dim].

    The stock kernel keeps all K of a (block, head) in the first half of its memory, all V in the
    second, whatever the last axis says.
    """
    blocks, heads, block, width = kv_cache.shape
    return kv_cache.view(blocks, heads, 2 * block, width // 2).chunk(2, dim=2)


def pages(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V as [num_blocks, block, kv heads, dim] views; K lies transposed [dim, block]."""
    keys, values = halves(kv_cache)
    blocks, heads, block, dim = keys.shape
    keys = keys.as_strided((blocks, block, heads, dim), (keys.stride(0), 1, keys.stride(1), block))
    return keys, values.transpose(1, 2)


@functools.cache
def is_strided(isa: str, dtype: torch.dtype, block: int, dim: int) -> bool:
    """Whether `pages` reads what the stock kernel writes: tried out on one block.

    The layout belongs to the kernel's instruction set (AMX packs tiles) and may change between
    versions, so it is asked rather than known.
    """
    cache = torch.zeros(1, 1, block, 2 * dim, dtype=dtype)
    # Whole numbers that every dtype holds exactly; no two of a row or a column are equal.
    steps = torch.arange(block)[:, None] * 3 + torch.arange(dim)[None]
    keys = (steps % 251).to(dtype)[:, None]
    values = (steps % 241).to(dtype)[:, None]
    vllm_ops.cpu_attn_reshape_and_cache(
        keys,
        values,
        *halves(cache),
        torch.arange(block, dtype=torch.int64),
        isa,
        k_scale=1.0,
        v_scale=1.0,
        kv_cache_dtype="auto",
    )
    seen_keys, seen_values = pages(cache)
    return torch.equal(seen_keys[0], keys) and torch.equal(seen_values[0], values)


class CPUImpl(CPUAttentionBackendImpl):
    """One layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = get_current_vllm_config().model_config
        text = getattr(model, "hf_text_config", None)
        self.tokensparse = Layer(text)
        self._never = self._why_never()
        self._fits = False  # dtype and cache are ones that we read

    def _why_never(self) -> str:
        if self.attn_type != AttentionType.DECODER:
            return f"attention type {self.attn_type}"
        for reason, present in (
            ("sliding window", self.sliding_window != -1),
            ("soft cap", self.logits_soft_cap != 0),
            ("attention sinks", self.sinks is not None),
            ("ALiBi", self.alibi_slopes is not None),
            ("FP8 cache", self.is_fp8_kv_cache),
        ):
            if present:
                return reason
        return ""

    def _why_not(self, layer: Any, query: torch.Tensor, kv_cache: torch.Tensor, step: Any) -> str:
        if self._never:
            return self._never
        if step.causal is not True or step.dynamic_causal is not None:
            return "not causal"
        if self._fits:
            return ""
        if query.dtype not in _DTYPES or query.dtype != kv_cache.dtype:
            return f"dtype {query.dtype}, cache {kv_cache.dtype}"
        isa = getattr(layer, "isa", None) or getattr(self, "isa", "")
        if not is_strided(isa, kv_cache.dtype, kv_cache.shape[2], kv_cache.shape[3] // 2):
            return f"the cache of instruction set {isa} is packed"
        self._fits = True
        return ""

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the stock backend's; this step's keys and values are in the cache already."""
        whole = (query, key, value, kv_cache, attn_metadata, output)
        if attn_metadata is None or output_scale is not None or output_block_scale is not None:
            return super().forward(layer, *whole, output_scale, output_block_scale)
        report = self.tokensparse.named(layer.layer_name)
        step = _step(attn_metadata, self.tokensparse)
        reason = self._why_not(layer, query, kv_cache, attn_metadata) if step.prompts else ""
        if reason or not step.ours:
            if step.exact and not reason:
                report.count_stock(step.exact_counts, SMALL)
            else:
                report.stock[reason or SHORT] += 1
            return super().forward(layer, *whole)
        stock = functools.partial(super().forward, layer)

        def serve_stock(index: int, run: Run) -> None:
            part, rows = self._part(layer, attn_metadata, index, run, query.dtype), run.rows
            stock(query[rows], key[rows], value[rows], kv_cache, part, output[rows])

        exact = self._exact_runs(step, query, kv_cache, attn_metadata, output)
        if exact is None:
            parts = (pages(kv_cache), self.scale, attn_metadata, output, serve_stock, SMALL)
            self._never = serve_step(self.tokensparse, step, query, *parts)
        else:
            self._never = self._serve_exactly(exact, query, kv_cache, output)
            if not self._never:
                serve_the_rest(report, step, serve_stock, SMALL)
        if self._never:
            return stock(*whole[:-2], attn_metadata, output)
        return output

    def _exact_runs(
        self,
        step: Step,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: CPUAttentionMetadata,
        output: torch.Tensor,
    ) -> list[ExactRun] | None:
        """Our runs, where this layer attends to everything in all of them; layers of the same shape
        share them. None where it may not, or a method decides."""
        served = self.tokensparse.served
        if not served.is_ours or (served.report.named and any(run.long for run in step.ours)):
            return None
        shape = (kv_cache.shape, kv_cache.stride(), query.shape, query.stride(), output.stride())
        made = metadata.__dict__.setdefault("_tokensparse_exact", {})
        found = made.get((shape, self.scale))
        if found is None:
            found = made[shape, self.scale] = [
                ExactRun(
                    run, served.setting, self.scale, query, kv_cache, pages(kv_cache),
                    metadata.block_table, output,
                )
                for run in step.ours
            ]  # fmt: skip
        return found

    def _serve_exactly(
        self,
        runs: list[ExactRun],
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> str:
        """Why the backend cannot; empty when it did."""
        report = self.tokensparse.served.report
        addresses = query.data_ptr(), kv_cache.data_ptr(), output.data_ptr()
        try:
            for run in runs:
                run(*addresses)
        except Unsupported as error:
            report.stock[str(error)] += 1
            return str(error)
        for run in runs:
            report.count_exact(run.counts, run.reason)
        return ""

    def _part(
        self, layer: Any, whole: CPUAttentionMetadata, index: int, run: Run, dtype: torch.dtype
    ) -> CPUAttentionMetadata:
        """The metadata of some requests of a step; layers of the same shape share it."""
        made = whole.__dict__.setdefault("_tokensparse_parts", {})
        found = made.get((index, self.num_heads))
        if found is not None:
            return found
        starts = torch.tensor(run.q_offsets, dtype=whole.query_start_loc.dtype)
        seq_lens = whole.seq_lens[run.first : run.past]
        arguments = dict(
            num_reqs=run.past - run.first,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_size,
            seq_lens=seq_lens,
            dtype=dtype,
            query_start_loc=starts,
            causal=True,
            sliding_window_size=-1,
            isa=getattr(layer, "isa", None) or self.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
        )
        schedule = vllm_ops.cpu_attn_get_scheduler_metadata
        if "kv_cache_dtype" in inspect.signature(schedule).parameters:
            arguments["kv_cache_dtype"] = self.kv_cache_dtype
        made[index, self.num_heads] = part = dataclasses.replace(
            whole,
            num_actual_tokens=run.q_offsets[-1],
            max_query_len=run.max_query,
            query_start_loc=starts,
            seq_lens=seq_lens,
            block_table=whole.block_table[run.first : run.past],
            slot_mapping=whole.slot_mapping[run.rows],
            scheduler_metadata=schedule(**arguments),
        )
        return part


def _step(metadata: CPUAttentionMetadata, layer: Layer) -> Step:
    """The plan of a step, made by its first layer."""
    found = metadata.__dict__.get("_tokensparse_step")
    if found is None:
        found = _DECODE
        if metadata.max_query_len >= layer.least:
            starts, seq_lens = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
            found = plan(
                starts, seq_lens, layer.setting, layer.least, least_pairs=layer.least_pairs
            )
        metadata.__dict__["_tokensparse_step"] = found
        publish_behind()
    return found


class CPUBackend(CPUAttentionBackend):
    """The stock CPU backend with our layers in it; it keeps the name the engine knows."""

    @staticmethod
    def get_impl_cls() -> type[CPUImpl]:
        """The class of a layer."""
        return CPUImpl
