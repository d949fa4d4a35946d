# SPDX-License-Identifier: MIT
"""The C ABI of libtokensparse.so as ctypes sees it: structs, prototypes, errors."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path

ABI_VERSION = 1

DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
SHARES = {"head": 0, "kv_group": 1, "layer": 2}
DROPPED = {"zero": 0, "local": 1}
PRECISIONS = {"f32": 0, "bf16": 1}
WHEN = {"always": 0, "pays": 1}
PATTERNS = {
    "none": 0,
    "xattention": 1,
    "flexprefill": 2,
    "minference": 3,
    "pooled": 4,
    "flash": 5,
}
BACKENDS = {"cpu": 0, "ref": 1, "cuda": 2}


class Error(RuntimeError):
    """A call into the library failed; the message names the argument, the rule and the value."""


class InvalidArgument(Error, ValueError):
    """The caller broke a rule of the operation."""


class Unsupported(Error, NotImplementedError):
    """A valid request that this backend or machine cannot serve."""


class OutOfMemory(Error, MemoryError):
    """The library could not get the memory it needs."""


class Unavailable(Error):
    """The backend or device asked for is not there."""


_ERRORS = {1: InvalidArgument, 2: Unsupported, 3: OutOfMemory, 4: Unavailable, 5: Error}


class Tensor(ctypes.Structure):
    """tsp_tensor_t: a strided or paged view of [tokens, heads, dim], strides in elements."""

    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("block_size", c_int32),
        ("tokens", c_int64),
        ("heads", c_int64),
        ("dim", c_int64),
        ("token_stride", c_int64),
        ("head_stride", c_int64),
        ("dim_stride", c_int64),
        ("block_table", c_void_p),
        ("table_stride", c_int64),
        ("block_stride", c_int64),
    ]


class Batch(ctypes.Structure):
    """tsp_batch_t: sequences laid end to end; offsets in host memory."""

    _fields_ = [
        ("q_offsets", POINTER(c_int32)),
        ("k_offsets", POINTER(c_int32)),
        ("num_seqs", c_int32),
        ("reserved", c_int32),
    ]


class IndexSets(ctypes.Structure):
    """tsp_index_sets_t: which tokens each set keeps."""

    _fields_ = [
        ("indices", c_void_p),
        ("kept", c_void_p),
        ("num_sets", c_int32),
        ("reserved", c_int32),
        ("set_stride", c_int64),
        ("seq_stride", c_int64),
    ]


class Pattern(ctypes.Structure):
    """tsp_pattern_t: how blocks are chosen."""

    _fields_ = [
        ("kind", c_int32),
        ("block", c_int32),
        ("share", c_int32),
        ("stride", c_int32),
        ("threshold", c_float),
        ("gamma", c_float),
        ("tau", c_float),
        ("alpha", c_float),
        ("min_budget", c_int32),
        ("vertical", c_int32),
        ("slash", c_int32),
        ("sink_blocks", c_int32),
        ("local_blocks", c_int32),
        ("last_blocks", c_int32),
        ("thresholds", POINTER(c_float)),
    ]


class BlockSets(ctypes.Structure):
    """tsp_block_sets_t: which key blocks and columns each query block reads."""

    _fields_ = [
        ("blocks", c_void_p),
        ("counts", c_void_p),
        ("columns", c_void_p),
        ("num_columns", c_void_p),
        ("block", c_int32),
        ("num_sets", c_int32),
        ("row_stride", c_int64),
        ("set_stride", c_int64),
        ("seq_stride", c_int64),
        ("count_set_stride", c_int64),
        ("count_seq_stride", c_int64),
        ("column_set_stride", c_int64),
        ("column_seq_stride", c_int64),
    ]


class ContextOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("backend", c_int32),
        ("num_threads", c_int32),
        ("device", c_int32),
        ("isa", c_char_p),
        ("stream", c_void_p),
        ("parallel", c_void_p),
        ("parallel_user", c_void_p),
    ]


_WORKSPACE = [("workspace", c_void_p), ("workspace_bytes", c_size_t)]


class ScoreParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("window", c_int32),
        ("pool", c_int32),
        ("scale", c_float),
        ("precision", c_int32),
        ("reserved", c_int32),
        ("q", Tensor),
        ("k", Tensor),
        ("scores", Tensor),
        ("batch", Batch),
    ] + _WORKSPACE


class SelectParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("window", c_int32),
        ("min_tokens", c_int32),
        ("share", c_int32),
        ("coverage", c_float),
        ("keep", c_float),
        ("num_kv_heads", c_int32),
        ("q_len", c_int32),
        ("k_len", c_int32),
        ("reserved", c_int32),
        ("scores", Tensor),
        ("selected", IndexSets),
        ("batch", Batch),
    ] + _WORKSPACE


class CompressParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("q", Tensor),
        ("k", Tensor),
        ("v", Tensor),
        ("selected", IndexSets),
        ("q_out", Tensor),
        ("k_out", Tensor),
        ("v_out", Tensor),
        ("batch", Batch),
    ]


class DecompressParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("k_len", c_int32),
        ("in_", Tensor),
        ("selected", IndexSets),
        ("out", Tensor),
        ("batch", Batch),
    ]


class EstimateParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("scale", c_float),
        ("precision", c_int32),
        ("reserved", c_int32),
        ("pattern", Pattern),
        ("q", Tensor),
        ("k", Tensor),
        ("selected", IndexSets),
        ("blocks", BlockSets),
        ("batch", Batch),
    ] + _WORKSPACE


_ATTENTION = [
    ("q", Tensor),
    ("k", Tensor),
    ("v", Tensor),
    ("out", Tensor),
    ("lse", Tensor),
    ("selected", IndexSets),
    ("batch", Batch),
    *_WORKSPACE,
]


class AttendParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("scale", c_float),
        ("dropped", c_int32),
        ("band", c_int32),
        ("precision", c_int32),
        ("sink", c_int32),
        *_ATTENTION,
        ("blocks", BlockSets),
    ]


class PrefillParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("scale", c_float),
        ("coverage", c_float),
        ("keep", c_float),
        ("window", c_int32),
        ("pool", c_int32),
        ("min_tokens", c_int32),
        ("share", c_int32),
        ("dropped", c_int32),
        ("band", c_int32),
        ("precision", c_int32),
        ("sink", c_int32),
        *_ATTENTION,
        ("given", IndexSets),
        ("when", c_int32),
        ("reserved2", c_int32),
        ("blocks", BlockSets),
        ("pattern", Pattern),
        ("tally", c_void_p),
    ]


_PARAMS = {
    "score": ScoreParams,
    "select": SelectParams,
    "compress": CompressParams,
    "attend": AttendParams,
    "decompress": DecompressParams,
    "estimate": EstimateParams,
    "prefill": PrefillParams,
}


# TOKENSPARSE_LIBRARY points at another build of the library (a debug or a CUDA one).
path = os.environ.get("TOKENSPARSE_LIBRARY") or str(Path(__file__).with_name("libtokensparse.so"))


def _open() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(
            f"tokensparse: cannot load {path} ({error}); "
            "reinstall the wheel, or set TOKENSPARSE_LIBRARY to a libtokensparse.so"
        ) from None
    lib.tsp_abi_version.restype = c_uint32
    found = lib.tsp_abi_version()
    if found != ABI_VERSION:
        raise ImportError(
            f"tokensparse: {path} has ABI version {found}, this package needs {ABI_VERSION}"
        )
    for name in ("tsp_last_error", "tsp_version", "tsp_cpu_isas"):
        getattr(lib, name).restype = c_char_p
    for name in ("tsp_context_backend", "tsp_context_isa"):
        getattr(lib, name).restype = c_char_p
        getattr(lib, name).argtypes = [c_void_p]
    lib.tsp_context_threads.argtypes = [c_void_p]
    lib.tsp_context_options_init.argtypes = [POINTER(ContextOptions), c_uint32]
    lib.tsp_context_options_init.restype = None
    lib.tsp_context_create.argtypes = [POINTER(ContextOptions), POINTER(c_void_p)]
    lib.tsp_context_destroy.argtypes = [c_void_p]
    lib.tsp_context_destroy.restype = None
    lib.tsp_context_set_threads.argtypes = [c_void_p, c_int32]
    lib.tsp_context_set_stream.argtypes = [c_void_p, c_void_p]
    lib.tsp_prefill_pays.argtypes = [c_void_p, *[c_int32] * 4, POINTER(c_int32)]
    lib.tsp_pattern_init.argtypes = [POINTER(Pattern), c_int32]
    lib.tsp_pattern_init.restype = None
    for op, params in _PARAMS.items():
        init = getattr(lib, f"tsp_{op}_params_init")
        init.argtypes, init.restype = [POINTER(params), c_uint32], None
        getattr(lib, f"tsp_{op}").argtypes = [c_void_p, POINTER(params)]
        if hasattr(params, "workspace"):
            getattr(lib, f"tsp_{op}_workspace").argtypes = [
                c_void_p,
                POINTER(params),
                POINTER(c_size_t),
            ]
    return lib


lib = _open()


def check(status: int) -> None:
    """Raises what a failed call left behind."""
    if status:
        raise _ERRORS.get(status, Error)(lib.tsp_last_error().decode())


def new_params(op: str):
    """The params struct of an op, filled with the library's defaults."""
    params = _PARAMS[op]()
    getattr(lib, f"tsp_{op}_params_init")(params, ctypes.sizeof(params))
    return params


def version() -> str:
    """Version of the loaded library."""
    return lib.tsp_version().decode()


def cpu_isas() -> list[str]:
    """The CPU paths this machine can run, best last."""
    return lib.tsp_cpu_isas().decode().split()
