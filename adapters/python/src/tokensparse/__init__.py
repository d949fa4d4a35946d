# SPDX-License-Identifier: MIT
"""Token Sparse Attention: cheaper prefill of long prompts, on the CPU and on NVIDIA GPUs.

    import numpy as np, tokensparse
    out = tokensparse.prefill(q, k, v, coverage=0.005, share="kv_group")

`tokensparse.transformers` and `tokensparse.vllm` put it inside those engines, `tokensparse.torch`
registers it as torch operators.
"""

from ._arrays import Paged
from ._blocks import Blocks, estimate
from ._call import Selection
from ._context import Context
from ._library import (
    Error,
    InvalidArgument,
    OutOfMemory,
    Unavailable,
    Unsupported,
    cpu_isas,
    version,
)
from .ops import attend, compress, decompress, prefill, score, select
from .setting import Setting, TokensparseWarning

__version__ = version()

__all__ = [
    "Blocks",
    "Context",
    "Error",
    "InvalidArgument",
    "OutOfMemory",
    "Paged",
    "Selection",
    "Setting",
    "TokensparseWarning",
    "Unavailable",
    "Unsupported",
    "attend",
    "compress",
    "cpu_isas",
    "decompress",
    "estimate",
    "prefill",
    "score",
    "select",
    "version",
]
