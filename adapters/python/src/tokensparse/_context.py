# SPDX-License-Identifier: MIT
"""Contexts: where an operation runs. Most callers never make one; the package keeps a pool."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import _library, _torch_library
from ._environment import default_backend, threads_from_environment
from ._library import check, lib


class Context:
    """A backend with its threads, or a device with its stream.

    Args:
      backend: "cpu", "ref" (the specification, slow) or "cuda".
      threads: CPU threads; 0 = every core this process may use.
      device: CUDA device ordinal.
      isa: "scalar", "avx2", "avx512", "avx512_bf16" or "amx_bf16"; None = the best this machine has.

    Raises:
      Unavailable: the build or the machine lacks the backend or the instruction set.

    A context serves one call at a time: give each thread its own.
    """

    def __init__(
        self,
        backend: str = "cpu",
        *,
        threads: int = 0,
        device: int = 0,
        isa: str | None = None,
        _parallel: int | None = None,  # address of a tsp_parallel_fn to run on
    ) -> None:
        if backend not in _library.BACKENDS:
            raise _library.InvalidArgument(
                f"backend: must be one of {', '.join(_library.BACKENDS)}, is {backend!r}"
            )
        self._arguments = (backend, threads, device, isa)
        self._parallel = _parallel
        self._handle = ctypes.c_void_p()
        self._scratch = np.empty(0, np.uint8)
        self._open()

    def _open(self) -> None:
        backend, threads, device, isa = self._arguments
        options = _library.ContextOptions()
        lib.tsp_context_options_init(options, ctypes.sizeof(options))
        options.backend = _library.BACKENDS[backend]
        options.num_threads = threads
        options.device = device
        options.isa = isa.encode() if isa else None
        options.parallel = self._parallel
        check(lib.tsp_context_create(options, self._handle))
        self._pid = os.getpid()

    @property
    def handle(self) -> ctypes.c_void_p:
        if self._pid != os.getpid():  # forked: the parent's threads do not exist here
            self._handle = ctypes.c_void_p()
            self._open()
        return self._handle

    @property
    def backend(self) -> str:
        """ "cpu", "ref" or "cuda"."""
        return lib.tsp_context_backend(self.handle).decode()

    @property
    def isa(self) -> str:
        """What the kernels use: "avx512", "sm_90", "double" (ref), ..."""
        return lib.tsp_context_isa(self.handle).decode()

    @property
    def threads(self) -> int:
        return lib.tsp_context_threads(self.handle)

    @threads.setter
    def threads(self, count: int) -> None:
        check(lib.tsp_context_set_threads(self.handle, count))

    def set_stream(self, stream: int) -> None:
        """CUDA: the cudaStream_t, as an integer, of the calls that follow."""
        check(lib.tsp_context_set_stream(self.handle, stream or None))

    def pays(self, rows: int, keys: int, heads: int, dim: int) -> bool:
        """Whether `when` = "pays" may leave tokens out of a sequence of such a shape."""
        found = ctypes.c_int32()
        check(lib.tsp_prefill_pays(self.handle, rows, keys, heads, dim, found))
        return bool(found.value)

    def scratch(self, size: int) -> int:
        """Address of `size` bytes of host memory, 64-byte aligned, valid until the next call."""
        if self._scratch.size < size + 64:
            self._scratch = np.empty(size + 64, np.uint8)
        address = self._scratch.__array_interface__["data"][0]
        return (address + 63) & ~63

    def __del__(self) -> None:
        # At the interpreter's end the modules may be gone before the last context.
        if getattr(self, "_handle", None) and os is not None and self._pid == os.getpid():
            lib.tsp_context_destroy(self._handle)

    def __repr__(self) -> str:
        if self.backend == "cuda":
            return f"Context('cuda', device={self._arguments[2]}, isa='{self.isa}')"
        return f"Context('{self.backend}', threads={self.threads}, isa='{self.isa}')"


_lock = threading.Lock()
_idle: dict[tuple[str, int, int, int | None], list[Context]] = defaultdict(list)


@contextlib.contextmanager
def lease(device: tuple[str, int], like: Any) -> Iterator[Context]:
    """A context of the pool for one call; a thread that finds none idle makes another.

    Args:
      device: where the arrays are.
      like: one of them: tensors of torch on the CPU are worked on by torch's threads.
    """
    backend, ordinal = device
    threads, parallel = 0, None
    if backend == "cpu":
        backend, threads = default_backend(), threads_from_environment()
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(like, torch.Tensor):
            threads = threads or torch.get_num_threads()
            parallel = _torch_library.parallel(torch)
    key = (backend, ordinal, threads, parallel)
    with _lock:
        context = _idle[key].pop() if _idle[key] else None
    if context is None:
        context = Context(backend, device=ordinal, threads=threads, _parallel=parallel)
    try:
        yield context
    finally:
        with _lock:
            _idle[key].append(context)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
