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
from .._library import Unsupported
from .._report import EXACT, TOO_SHORT, Counts, LayerReport
from .._served import ServedLayer
from .ledger import Ledger, builders
from .planned import Pages, Planned, pays, reserve
from .prompts import Prompts
from .steps import (
    GRAPH,
    SHORT,
    Layer,
    Run,
    Step,
    plan,
    publish_behind,
    serve_step,
    serve_the_rest,
)

_DTYPES = (torch.float16, torch.bfloat16)
_OTHER_MASKS = ("mm_prefix_range_tensor", "mm_prefix_query_range_tensor", "rswa_prefix_lens")

_reserved: set[str] = set()  # settings


def _captures(query: torch.Tensor) -> bool:
    return query.is_cuda and torch.cuda.is_current_stream_capturing()


def pages(kv_cache: torch.Tensor, head_size: int) -> Pages:
    """K and V as [num_blocks, block, kv heads, dim] views of either layout of the cache."""
    if kv_cache.dim() == 5:  # [num_blocks, 2, block, kv heads, dim]
        return kv_cache.unbind(1)
    return kv_cache.transpose(1, 2).split(head_size, dim=-1)  # [num_blocks, heads, block, 2 dim]


def _has_other_masks(metadata: Any) -> bool:
    if metadata.causal is not True or getattr(metadata, "use_cascade", False):
        return True
    return any(getattr(metadata, field, None) is not None for field in _OTHER_MASKS)


class CUDABuilder(FlashAttentionMetadataBuilder):
    """The stock builder; it also keeps the lengths on the host, where our plan needs them, and says of a
    step whether any layer has something of ours to do: what is exact costs a layer next to nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last: Prompts | None = None  # with something of ours in them
        self._captures = False
        self._kinds: list[CUDAImpl] = []  # of layers that a plan of their own may serve, one each
        self._known: tuple[Layer, ServedLayer] | None = None  # one of them
        self._least = 0
        self._ledger = Ledger()
        builders.add(self)

    def _know_layers(self) -> None:
        """Finds them, again when they have taken another setting."""
        if self._known is not None and self._known[0].served is self._known[1]:
            return
        made = self.vllm_config.compilation_config.static_forward_context
        kinds, self._ledger = {}, Ledger()
        for name in self.layer_names:
            impl, layer = made[name].impl, made[name].impl.tokensparse
            if impl.may_serve(layer.named(name)):
                kinds[impl.kind] = impl
            layer.ledgers.append((self._ledger, impl.count_stock))
            self._known, self._least = (layer, layer.served), layer.least
        self._kinds = list(kinds.values())

    def _write_down(self, prompts: Prompts, why: str) -> None:
        """Counts prompts that are the stock layer's alone."""
        counts = prompts.counts(self._least)
        if counts.calls or not why:
            self._ledger.add(counts, why)
            publish_behind()

    def settle(self) -> None:
        """Counts prompts of the step before that a layer should have seen, but none has: replayed."""
        last, self._last = self._last, None
        if last is not None and not last.seen:
            self._write_down(last, GRAPH)

    def _note(self, metadata: Any, starts: list[int], seq_lens: list[int]) -> None:
        """Leaves a step's prompts in its metadata."""
        self._know_layers()
        metadata._tokensparse = prompts = Prompts(starts, seq_lens)
        device = metadata.seq_lens.device
        prompts.ours = any([impl.step_of(prompts, device).ours for impl in self._kinds])
        if prompts.ours:
            self._last = prompts
        elif not self._captures:
            self._write_down(prompts, "")

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False):
        """As the stock builder's."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        self.settle()
        common = common_attn_metadata
        # Exact for prompt rows; decode rows may be optimistic, and are not ours.
        seq_lens = getattr(common, "seq_lens_cpu_upper_bound", None)
        if seq_lens is not None and common.max_query_len > 1:
            starts = common.query_start_loc_cpu[: common.num_reqs + 1].tolist()
            self._note(metadata, starts, seq_lens[: common.num_reqs].tolist())
        return metadata

    def build_for_cudagraph_capture(self, common_attn_metadata: Any):
        """As the stock builder's; what is captured is no prompt of anybody."""
        self._captures = True
        try:
            return super().build_for_cudagraph_capture(common_attn_metadata)
        finally:
            self._captures, self._last = False, None

    def update_block_table(self, metadata: Any, blk_table: Any, slot_mapping: Any):
        """As the stock builder's: another group's metadata for the layers and pages of this one."""
        updated = super().update_block_table(metadata, blk_table, slot_mapping)
        self.settle()
        prompts = metadata.__dict__.get("_tokensparse")
        if prompts is not None:
            self._note(updated, prompts.starts, prompts.seq_lens)
        return updated


class CUDAImpl(FlashAttentionImpl):
    """One layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._model = get_current_vllm_config().model_config
        self.tokensparse = Layer(getattr(self._model, "hf_text_config", None))
        self._never = self._why_never()
        # Of the default method it is known beforehand what attends to everything.
        self._votes = methods.default() == "tsa"
        self._pages: tuple[int, Pages] | None = None

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

    @property
    def kind(self) -> tuple[Any, ...]:
        """Layers of one kind share a plan."""
        return self.tokensparse.key, self.tokensparse.least, self.num_heads, self.head_size

    def may_serve(self, report: LayerReport) -> bool:
        """Whether there may be prompts that are ours."""
        return not self._never and (report.named or not self._votes)

    def count_stock(
        self, report: LayerReport, prompts: Counts, reason: str = "", calls: int = 1
    ) -> None:
        """Adds calls that the stock layer attended to.

        Args:
          reason: in the place of what the setting says.
        """
        if self._never or not prompts.calls:
            report.stock[self._never or SHORT] += calls
        else:
            reason = reason or (TOO_SHORT if self.may_serve(report) else EXACT)
            report.count_stock(prompts, reason, calls)

    def step_of(self, prompts: Prompts, device: torch.device) -> Step:
        """How a step is split for layers of this kind, found once."""
        found = prompts.steps.get(self.kind)
        if found is None:
            found = prompts.steps[self.kind] = self._plan(prompts, device)
        return found

    def _plan(self, prompts: Prompts, device: torch.device) -> Step:
        setting, may_pay = self.tokensparse.setting, None
        if setting.when == "pays" and self._votes:
            may_pay = functools.partial(pays, device, self.num_heads, self.head_size)
        return plan(
            prompts.starts,
            prompts.seq_lens,
            setting,
            self.tokensparse.least,
            exact_is_ours=not self._votes,
            pays=may_pay,
        )

    def _sparse_step(
        self,
        prompts: Prompts,
        layer: Any,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: Any,
    ) -> Step | None:
        """The step when this layer has a part in it that is ours; else it is counted and None, and
        what comes is the stock layer's alone."""
        if not prompts.seen:
            prompts.seen, prompts.captured = True, _captures(query)
            prompts.masked = _has_other_masks(metadata)
            publish_behind()
        if prompts.captured:
            return None
        report = self.tokensparse.named(layer.layer_name)
        if (
            self._never
            or prompts.masked
            or query.dtype not in _DTYPES
            or kv_cache.dtype != query.dtype
        ):
            report.stock[self._never or SHORT] += 1
            return None
        step = self.step_of(prompts, query.device)
        if step.ours and self.may_serve(report):
            return step
        self.count_stock(report, step.all_counts)
        return None

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
        step = None
        if attn_metadata is None:  # a run to measure memory
            self._reserve(query)
        else:  # on short prompts the host is slower than the GPU: nothing here that need not be
            prompts = attn_metadata.__dict__.get("_tokensparse")
            if prompts is None:
                self.tokensparse.named(layer.layer_name).stock[self._never or SHORT] += 1
            elif prompts.ours:  # else the builder counts it
                step = self._sparse_step(prompts, layer, query, kv_cache, attn_metadata)
        if step is None or output_scale is not None or output_block_scale is not None:
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale,
                output_block_scale,
            )  # fmt: skip
        stock = functools.partial(super().forward, layer)

        def serve_stock(index: int, run: Run) -> None:
            part, rows = self._part(attn_metadata, index, run), run.rows
            stock(query[rows], key[rows], value[rows], kv_cache, part, output[rows])

        serve = self._serve_planned if self._votes else self._serve_chosen
        self._never = serve(step, query, kv_cache, attn_metadata, output, serve_stock)
        if self._never:
            return stock(query, key, value, kv_cache, attn_metadata, output)
        return output

    def _pages_of(self, kv_cache: torch.Tensor) -> Pages:
        """The cache's, made once: views cost more than a call."""
        address = kv_cache.data_ptr()
        if self._pages is None or self._pages[0] != address:
            self._pages = address, pages(kv_cache, self.head_size)
        return self._pages[1]

    def _serve_chosen(
        self, step: Step, query: Any, kv_cache: Any, metadata: Any, output: Any, stock: Any
    ) -> str:
        """`serve_step`, for a method that looks at the layer before it decides."""
        cache = self._pages_of(kv_cache)
        return serve_step(
            self.tokensparse, step, query, cache, self.scale, metadata, output, stock
        )

    def _serve_planned(
        self, step: Step, query: Any, kv_cache: Any, metadata: Any, output: Any, stock: Any
    ) -> str:
        """As `serve_step`, with what layers have in common done once."""
        layer, cache, planned = self.tokensparse, self._pages_of(kv_cache), metadata._tokensparse.planned
        shape = (layer.key, self.scale, query.stride(), output.stride(), cache[0].stride())
        report, tally = layer.served.report, layer.tally(query.device, self.num_heads)
        try:
            for index, run in enumerate(step.ours):
                call = planned.get((index, shape))
                if call is None:
                    layer.served.check()
                    call = planned[index, shape] = Planned(
                        run, layer.setting, self.scale, query, cache, metadata.block_table, output
                    )
                call(query, cache, output, tally)
                report.count_tallied(call.counts)
                if call.uncounted:
                    report.uncounted = True
                    layer.tallies.add_kept(layer.slot, call.kept)
        except Unsupported as error:  # a shape that the backend cannot serve
            report.stock[str(error)] += 1
            return str(error)
        if layer.slot == layer.tallies.used - 1:  # the step's last
            layer.tallies.follow()
        serve_the_rest(report, step, stock)
        return ""

    def _reserve(self, query: torch.Tensor) -> None:
        """Has the workspace of the largest call at hand when the engine measures what it needs."""
        setting = self.tokensparse.setting
        if not setting.is_sparse or self._never or not self._votes or query.dtype not in _DTYPES:
            return
        if self.tokensparse.key in _reserved:
            return
        _reserved.add(self.tokensparse.key)
        query = query.view(-1, self.num_heads, self.head_size)
        try:
            reserve(setting, self.scale, query, self.num_kv_heads, self._model.max_model_len)
        except Unsupported:
            pass  # the first prompt's call says it

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
