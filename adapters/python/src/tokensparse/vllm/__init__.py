# SPDX-License-Identifier: MIT
"""Token sparse attention inside vLLM, as a plugin: installing the package is all it takes.

On the CPU the plugin takes the place of the stock backend. On CUDA it is the CUSTOM backend:
`vllm serve MODEL --attention-backend CUSTOM`. Prompt chunks of 64 tokens and more are served by
tokensparse (steps of exact ones on the CPU from 224 rows on 224 keys), exactly until TOKENSPARSE_SETTING or TOKENSPARSE_COVERAGE says otherwise; decode rows and
whatever tokensparse does not serve stay with the stock kernel, on CUDA all that is exact. The keys of `tokensparse.Setting` are
variables, TOKENSPARSE_<KEY>; TOKENSPARSE_DISABLE=1 switches the plugin off.

Tensor parallelism: the heads of a rank are local, and every rank decides with its own heads how
many tokens to keep. No rank waits for another; the sets of `share="head"` and "kv_group" are
ranked as on one GPU, and "layer" is one set a rank. A fixed `keep` gives the same sets on any
number of ranks.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from .._need import TooOld, need
from . import metrics

if TYPE_CHECKING:
    from .._report import Report

__all__ = ["register", "report", "worker_configure", "worker_report"]

_log = logging.getLogger("vllm.tokensparse")


def register() -> None:
    """What vLLM calls in every process before it chooses a backend."""
    if os.environ.get("TOKENSPARSE_DISABLE", "0") not in ("", "0"):
        return
    try:
        need("vllm", "0.24", "tokensparse.vllm")
    except TooOld as error:  # a plugin must not stop an engine that works without it
        _log.warning("%s; vLLM runs without tokensparse", error)
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, "tokensparse.vllm.cpu.CPUBackend")
    register_backend(AttentionBackendEnum.CUSTOM, "tokensparse.vllm.cuda.CUDABackend")
    metrics.register()


def report(reset: bool = False) -> Report:
    """What happened in each layer of this process since the last reset.

    In another process: `llm.collective_rpc(tokensparse.vllm.worker_report)`.
    """
    from .steps import collect

    return collect(reset)


def worker_configure(worker: object, variables: dict[str, str]) -> None:
    """For `LLM.collective_rpc`: the setting of a running engine is from now on what `variables`, as
    `{"TOKENSPARSE_COVERAGE": "0.1"}`, ask for. What the prefix cache holds stays as it was computed
    (`LLM.reset_prefix_cache`)."""
    from .steps import configure

    configure(variables)


def worker_report(worker: object) -> list[dict]:
    """`report()` of a worker process, for `LLM.collective_rpc`."""
    return report().asdict()
