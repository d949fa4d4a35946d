# SPDX-License-Identifier: MIT
"""The CUDA backend: sparse prompt rows by tokensparse from the paged cache, the rest by FlashAttention:
decode rows, exact layers and prompts that are too short to gain are its own, untouched."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)

from .. import methods
from .steps import EXACT, SHORT, TOO_SHORT, Layer, Run, Step, plan, serve_step

_DTYPES = (torch.float16, torch.bfloat16)
# Below these `when = "pays"` attends exactly on CUDA (src/cuda/prefill_op.cc).
_PAYING_KEYS, _PAYING_ROWS = 4096, 1024


def pages(kv_cache: torch.Tensor, head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V as [num_blocks, block, kv heads, dim] views of either layout of the cache."""
    if kv_cache.dim() == 5:  # [num_blocks, 2, block, kv heads, dim]
        return kv_cache.unbind(1)
    return kv_cache.transpose(1, 2).split(head_size, dim=-1)  # [num_blocks, heads, block, 2 dim]


class CUDABuilder(FlashAttentionMetadataBuilder):
    """The stock builder; it also keeps the lengths on the host, where our plan needs them."""

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False):
        """As the stock builder's."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        common = common_attn_metadata
        # Exact for prompt rows; decode rows may be optimistic, and are not ours.
        seq_lens = getattr(common, "seq_lens_cpu_upper_bound", None)
        if seq_lens is not None and common.max_query_len > 1:
            starts = common.query_start_loc_cpu[: common.num_reqs + 1].tolist()
            metadata._tokensparse_lengths = (starts, seq_lens[: common.num_reqs].tolist())
        return metadata


class CUDAImpl(FlashAttentionImpl):
    """One layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = get_current_vllm_config().model_config
        text = getattr(model, "hf_text_config", None)
        self.tokensparse = Layer(text)
        self._never = self._why_never()
        # Of the default method it is known beforehand what attends to everything.
        self._votes = methods.default() == "tsa"

    def _why_never(self) -> str:
        if self.attn_type != AttentionType.DECODER:
            return f"attention type {self.attn_type}"
        window = self.sliding_window
        for reason, present in (
            ("sliding window", window is not None and tuple(window) != (-1, -1)),
            ("soft cap", bool(self.logits_soft_cap)),
            ("attention sinks", getattr(self, "sinks", None) is not None),
            ("ALiBi", self.alibi_slopes is not None),
            ("FP8 cache", str(self.kv_cache_dtype).startswith("fp8")),
            ("context parallelism", getattr(self, "dcp_world_size", 1) > 1),
        ):
            if present:
                return reason
        return ""

    def _step(self, metadata: Any, query: torch.Tensor, kv_cache: torch.Tensor) -> Step | None:
        lengths = getattr(metadata, "_tokensparse_lengths", None)
        if lengths is None or self._never or metadata.causal is not True:
            return None
        if query.dtype not in _DTYPES or kv_cache.dtype != query.dtype:
            return None
        for field in ("mm_prefix_range_tensor", "mm_prefix_query_range_tensor", "rswa_prefix_lens"):
            if getattr(metadata, field, None) is not None:
                return None
        if getattr(metadata, "use_cascade", False):
            return None
        if query.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        found = metadata.__dict__.get("_tokensparse_step")
        if found is None:
            setting, least = self.tokensparse.setting, self.tokensparse.least
            if setting.when == "pays" and self._votes:
                setting = setting.changed(
                    min_keys=max(setting.min_keys, _PAYING_KEYS),
                    min_rows=max(setting.min_rows, _PAYING_ROWS),
                )
            found = plan(*lengths, setting, least, exact_is_ours=not self._votes)
            metadata._tokensparse_step = found
        return found

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: FlashAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the stock backend's; this step's keys and values are in the cache already."""
        stock = functools.partial(super().forward, layer)
        if attn_metadata is None:  # a run to measure memory
            return stock(query, key, value, kv_cache, None, output, output_scale, output_block_scale)
        report = self.tokensparse.named(layer.layer_name)
        step = None
        if output_scale is None and output_block_scale is None:
            step = self._step(attn_metadata, query, kv_cache)
        exact = step is not None and self._votes and not report.named
        if step is None or not step.ours or exact:
            if step is not None and step.prompts:
                report.count_stock(step.prompts, EXACT if exact else TOO_SHORT)
            else:
                report.stock[self._never or SHORT] += 1
            return stock(
                query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )

        def serve_stock(index: int, run: Run) -> None:
            part, rows = self._part(attn_metadata, index, run), run.rows
            stock(query[rows], key[rows], value[rows], kv_cache, part, output[rows])

        self._never = serve_step(
            self.tokensparse,
            step,
            query,
            pages(kv_cache, self.head_size),
            self.scale,
            attn_metadata,
            output,
            serve_stock,
        )
        if self._never:
            return stock(query, key, value, kv_cache, attn_metadata, output)
        return output

    def _part(self, whole: Any, index: int, run: Run) -> FlashAttentionMetadata:
        """The metadata of some requests of a step; all layers share it."""
        made = whole.__dict__.setdefault("_tokensparse_parts", {})
        if index not in made:
            starts = whole.query_start_loc[run.first : run.past + 1]
            made[index] = dataclasses.replace(
                whole,
                num_actual_tokens=run.q_offsets[-1],
                max_query_len=run.max_query,
                query_start_loc=starts - starts[:1],
                seq_lens=whole.seq_lens[run.first : run.past],
                block_table=whole.block_table[run.first : run.past],
                slot_mapping=whole.slot_mapping[run.rows],
                scheduler_metadata=None,
            )
        return made[index]


class CUDABackend(FlashAttentionBackend):
    """FlashAttention with our layers in it, under the name CUSTOM."""

    @staticmethod
    def get_name() -> str:
        """The name the engine selects it by."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[CUDAImpl]:
        """The class of a layer."""
        return CUDAImpl

    @staticmethod
    def get_builder_cls() -> type[CUDABuilder]:
        """The class that makes a step's metadata."""
        return CUDABuilder
