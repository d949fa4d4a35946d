# SPDX-License-Identifier: MIT
"""Anybody's array as pointer, shape and strides: numpy, torch, __cuda_array_interface__, DLPack.

Nothing is copied. Every refusal names the argument, the rule and the value.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, NamedTuple

import numpy as np

from ._library import DTYPES, InvalidArgument, Tensor


class View(NamedTuple):
    """A borrowed array. `owner` keeps the memory alive."""

    data: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements
    dtype: str
    device: tuple[str, int]  # ("cpu", 0) or ("cuda", ordinal)
    writable: bool
    stream: int | None  # the producer's CUDA stream, where the protocol tells
    owner: Any


class Paged(NamedTuple):
    """Keys or values in the blocks of a paged cache.

    Attributes:
      data: [num_blocks, block_size, heads, dim], any strides: permute a cache's own layout.
      block_table: int32 [num_seqs, max_blocks], on the device of `data`: the blocks of each
        sequence in order. Token t of sequence b is row t % block_size of block
        block_table[b, t // block_size].

    The number of keys of each sequence comes from `k_offsets`.
    """

    data: Any
    block_table: Any


def device_name(device: tuple[str, int]) -> str:
    return "cpu" if device[0] == "cpu" else f"{device[0]}:{device[1]}"


def view(x: Any, name: str) -> View:
    """Looks at an array without copying it."""
    if isinstance(x, np.ndarray):
        return _view_numpy(x, name)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _view_torch(x, name, torch)
    if hasattr(x, "__cuda_array_interface__"):
        return _view_cuda(x, name)
    if hasattr(x, "__dlpack__"):
        return _view_dlpack(x, name)
    raise TypeError(
        f"{name}: must be an array (numpy, torch, DLPack or __cuda_array_interface__), "
        f"is {type(x).__name__}"
    )


def _elements(strides: tuple[int, ...], itemsize: int, name: str) -> tuple[int, ...]:
    if any(s % itemsize for s in strides):
        raise InvalidArgument(
            f"{name}: strides must be whole elements of {itemsize} bytes, are {strides} bytes"
        )
    return tuple(s // itemsize for s in strides)


def _view_numpy(x: np.ndarray, name: str) -> View:
    if isinstance(x, np.ma.MaskedArray):
        raise InvalidArgument(
            f"{name}: masked arrays are not supported: leave the tokens out, or pass {name}.data"
        )
    if not x.dtype.isnative:
        raise TypeError(f"{name}: dtype must be in native byte order, is {x.dtype.str}")
    return View(
        x.__array_interface__["data"][0] if x.size else 0,
        x.shape,
        _elements(x.strides, x.itemsize, name),
        x.dtype.name,
        ("cpu", 0),
        x.flags.writeable,
        None,
        x,
    )


def _why_not_memory(x: Any, torch: Any) -> str:
    """What a tensor is whose numbers are not simply those in its memory; empty for others."""
    if torch.nn.parameter.is_lazy(x):
        return "a lazy parameter without a shape yet"
    if type(x).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return type(x).__name__  # FakeTensor, DTensor, MaskedTensor, quantised wrappers, ...
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return "a tensor of torch.func"
    if x.is_nested:
        return "nested"
    if x.is_neg():
        return "a negated view: pass {name}.resolve_neg()"
    if x._is_zerotensor():
        return "a tensor of zeros without memory"
    return ""


def _is_recorded(torch: Any) -> bool:
    """Whether calls of torch become a graph now, in which ours would be a constant."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return torch.jit.is_tracing() or (proxies is not None and proxies.get_proxy_mode() is not None)


def _check_storage(x: Any, name: str) -> None:
    """The memory of a tensor can be given back or cut under it (`untyped_storage().resize_`)."""
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride()))
    needed = (x.storage_offset() + last + 1) * x.element_size() if x.numel() else 0
    if needed > (held := x.untyped_storage().nbytes()):
        raise InvalidArgument(f"{name}: needs {needed} bytes of memory, its storage has {held}")


def _view_torch(x: Any, name: str, torch: Any) -> View:
    if _is_recorded(torch):
        raise InvalidArgument(
            f"{name}: cannot be recorded by torch.jit.trace or make_fx: use torch.compile, or "
            "torch.ops.tokensparse"
        )
    if why := _why_not_memory(x, torch):
        raise InvalidArgument(f"{name}: must be a plain tensor, is {why.format(name=name)}")
    if x.requires_grad and torch.is_grad_enabled():
        raise InvalidArgument(
            f"{name}: requires_grad must be False: tokensparse is inference only; "
            f"call under torch.no_grad() or pass {name}.detach()"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: must be a dense tensor, has layout {x.layout}")
    kind = x.device.type
    if kind not in ("cpu", "cuda"):
        raise InvalidArgument(f"{name}: must be on the CPU or on a CUDA device, is on {x.device}")
    _check_storage(x, name)
    return View(
        x.data_ptr(),
        tuple(x.shape),
        x.stride(),
        str(x.dtype)[6:],
        (kind, x.device.index or 0),
        True,
        None,
        x,
    )


def _view_cuda(x: Any, name: str) -> View:
    interface = x.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise InvalidArgument(f"{name}: masked arrays are not supported")
    try:
        dtype = np.dtype(interface["typestr"])
    except TypeError:
        raise TypeError(f"{name}: dtype {interface['typestr']!r} is not supported") from None
    shape = tuple(interface["shape"])
    strides = interface.get("strides")
    if strides is None:
        strides = contiguous_strides(shape)
    else:
        strides = _elements(tuple(strides), dtype.itemsize, name)
    data, read_only = interface["data"]
    stream = interface.get("stream")
    device = getattr(getattr(x, "device", None), "id", 0)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        stream = cupy.cuda.get_current_stream(x.device.id).ptr
    return View(data or 0, shape, strides, dtype.name, ("cuda", device), not read_only, stream, x)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]

# (type code, bits) of DLPack: 0 = int, 2 = float, 4 = bfloat
_DL_DTYPES = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16", (0, 32): "int32"}
_DL_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}  # 3 pinned host, 13 managed
_DL_READ_ONLY = 1


def _view_dlpack(x: Any, name: str) -> View:
    # The capsule stays unconsumed: its own destructor returns the memory when the view goes.
    # On a GPU the call runs on the default stream (1), which the producer makes wait for its own.
    on_gpu = _DL_DEVICES.get(int(x.__dlpack_device__()[0])) == "cuda"
    order = {"stream": 1} if on_gpu else {}
    try:
        capsule = x.__dlpack__(max_version=(1, 0), **order)
    except TypeError:  # a producer from before DLPack 1.0
        capsule = x.__dlpack__(**order)
    flags = 0
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = _DLVersioned.from_address(_get_pointer(capsule, b"dltensor_versioned"))
        flags, tensor = managed.flags, managed.tensor
    else:
        tensor = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    dtype = _DL_DTYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise TypeError(
            f"{name}: dtype must be float32, float16 or bfloat16, is DLPack code {tensor.code} "
            f"with {tensor.bits} bits"
        )
    device = _DL_DEVICES.get(tensor.device_type)
    if device is None:
        raise InvalidArgument(
            f"{name}: must be on the CPU or on a CUDA device, is on DLPack device "
            f"{tensor.device_type}"
        )
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = (
        tuple(tensor.strides[i] for i in range(tensor.ndim))
        if tensor.strides
        else contiguous_strides(shape)
    )
    return View(
        (tensor.data or 0) + tensor.byte_offset,
        shape,
        strides,
        dtype,
        (device, tensor.device_id if device == "cuda" else 0),
        not flags & _DL_READ_ONLY,
        1 if on_gpu else None,
        capsule,
    )


def _check_floats(x: View, name: str, allowed: tuple[str, ...]) -> None:
    if x.dtype not in allowed:
        raise TypeError(f"{name}: dtype must be {' or '.join(allowed)}, is {x.dtype}")
    if any(s < 0 for s in x.strides):
        raise InvalidArgument(f"{name}: strides must not be negative, are {x.strides} elements")


def tensor(
    x: View,
    name: str,
    axes: str = "[tokens, heads, dim]",
    allowed: tuple[str, ...] = ("float32", "float16", "bfloat16"),
    write: bool = False,
) -> Tensor:
    """tsp_tensor_t of a 3-D view, or of a 2-D one whose last axis is taken as 1."""
    ndim = axes.count(",") + 1
    if len(x.shape) != ndim:
        raise InvalidArgument(
            f"{name}: must have {ndim} dimensions {axes}, has {len(x.shape)}: {list(x.shape)}"
        )
    _check_floats(x, name, allowed)
    if write and not x.writable:
        raise InvalidArgument(f"{name}: must be writable, is read-only")
    shape, strides = x.shape, x.strides
    if ndim == 2:
        shape, strides = (*shape, 1), (*strides, 1)
    return Tensor(x.data, DTYPES[x.dtype], 0, *shape, *strides, None, 0, 0)


def paged_tensor(x: View, table: View, name: str) -> Tensor:
    """tsp_tensor_t of [num_blocks, block_size, heads, dim] behind a block table."""
    if len(x.shape) != 4:
        raise InvalidArgument(
            f"{name}.data: must have 4 dimensions [num_blocks, block_size, heads, dim], "
            f"has {len(x.shape)}: {list(x.shape)}"
        )
    _check_floats(x, f"{name}.data", ("float32", "float16", "bfloat16"))
    if table.dtype != "int32":
        raise TypeError(f"{name}.block_table: dtype must be int32, is {table.dtype}")
    if len(table.shape) != 2 or (table.shape[1] > 1 and table.strides[1] != 1):
        raise InvalidArgument(
            f"{name}.block_table: must be [num_seqs, max_blocks] with contiguous rows, "
            f"is {list(table.shape)} with strides {list(table.strides)}"
        )
    if table.device != x.device:
        raise InvalidArgument(
            f"{name}.block_table: must be on {device_name(x.device)} like {name}.data, "
            f"is on {device_name(table.device)}"
        )
    _, block_size, heads, dim = x.shape
    block_stride, *strides = x.strides
    return Tensor(
        x.data,
        DTYPES[x.dtype],
        block_size,
        0,
        heads,
        dim,
        *strides,
        table.data,
        table.strides[0],
        block_stride,
    )


def empty_like(x: Any, shape: tuple[int, ...], dtype: str, name: str) -> Any:
    """A new array of x's library on x's device."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return torch.empty(shape, dtype=getattr(torch, dtype), device=x.device)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        with x.device:
            return cupy.empty(shape, dtype=dtype)
    seen = view(x, name)
    if seen.device[0] != "cpu":
        raise InvalidArgument(
            f"out: must be given for arrays of {type(x).__module__}: only numpy, torch and cupy "
            "arrays can be made here"
        )
    if dtype == "bfloat16":
        if isinstance(x, np.ndarray) and x.dtype.name == dtype:
            return np.empty(shape, x.dtype)
        try:
            import ml_dtypes
        except ImportError:
            raise InvalidArgument(
                f"{name}: a bfloat16 result as a numpy array needs ml_dtypes "
                "(pip install ml_dtypes), or pass `out`"
            ) from None
        return np.empty(shape, ml_dtypes.bfloat16)
    return np.empty(shape, dtype)
