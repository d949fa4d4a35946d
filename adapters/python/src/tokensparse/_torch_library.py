# SPDX-License-Identifier: MIT
"""libtokensparse_torch.so: the operators, registered over torch's stable ABI, and torch's threads.

It is built without torch and finds its functions in the torch that is loaded, 2.10 or newer.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from types import ModuleType

from . import _library
from ._environment import default_backend, threads_from_environment
from ._need import need

AT_LEAST = "2.10"


def _file() -> Path:
    """Beside the library in use, else beside the package."""
    name = "libtokensparse_torch.so"
    places = [Path(_library.path).with_name(name), Path(__file__).with_name(name)]
    return next((place for place in places if place.exists()), places[-1])


@functools.cache
def load() -> ctypes.CDLL:
    """Opens the library and registers `torch.ops.tokensparse`.

    Raises:
      ImportError: torch is missing, too old, or not what it seems.
    """
    torch = need("torch", AT_LEAST, "tokensparse.torch")
    try:
        library = ctypes.CDLL(str(_file()))
        libtorch = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch.so"))
    except OSError as error:
        raise ImportError(f"tokensparse.torch: {error}") from None
    register = library.tsp_torch_register
    register.restype = ctypes.c_char_p
    register.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
    backend = _library.BACKENDS[default_backend()]
    missing = register(libtorch._handle, backend, threads_from_environment())
    if missing is not None:
        raise ImportError(
            f"tokensparse.torch: torch {torch.__version__} does not take the operators: "
            f"{missing.decode()}"
        )
    return library


@functools.cache
def parallel(torch: ModuleType) -> int | None:
    """Address of a tsp_parallel_fn on torch's threads; None where torch is too old, or this
    build of the library has no operators.

    After one of torch's operations its threads still spin for a while, each on its core. Threads of
    our own would wait for one: at 2,048 rows of the 0.5B model's attention that cost 20 % (2 cores
    AMD EPYC Zen 5, 2026-11-25).
    """
    try:
        library = load()
    except ImportError:
        return None
    return ctypes.cast(library.tsp_torch_parallel, ctypes.c_void_p).value
