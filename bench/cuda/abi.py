# SPDX-License-Identifier: MIT
"""The C ABI as ctypes, over torch tensors of a CUDA device: what the GPU benchmark needs of it."""
import ctypes as c

import torch

F32, F16, BF16 = 0, 1, 2
DTYPES = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}
SHARES = {"head": 0, "kv_group": 1, "layer": 2}


def _struct(name, *fields):
    return type(name, (c.Structure,), {"_fields_": list(fields)})


Tensor = _struct(
    "Tensor", ("data", c.c_void_p), ("dtype", c.c_int32), ("block_size", c.c_int32),
    ("tokens", c.c_int64), ("heads", c.c_int64), ("dim", c.c_int64), ("token_stride", c.c_int64),
    ("head_stride", c.c_int64), ("dim_stride", c.c_int64), ("block_table", c.c_void_p),
    ("table_stride", c.c_int64), ("block_stride", c.c_int64))
Batch = _struct("Batch", ("q_offsets", c.c_void_p), ("k_offsets", c.c_void_p),
                ("num_seqs", c.c_int32), ("reserved", c.c_int32))
Sets = _struct("Sets", ("indices", c.c_void_p), ("kept", c.c_void_p), ("num_sets", c.c_int32),
               ("reserved", c.c_int32), ("set_stride", c.c_int64), ("seq_stride", c.c_int64))
Options = _struct(
    "Options", ("struct_size", c.c_uint32), ("backend", c.c_int32), ("num_threads", c.c_int32),
    ("device", c.c_int32), ("isa", c.c_char_p), ("stream", c.c_void_p), ("parallel", c.c_void_p),
    ("parallel_user", c.c_void_p))
Score = _struct(
    "Score", ("struct_size", c.c_uint32), ("window", c.c_int32), ("pool", c.c_int32),
    ("scale", c.c_float), ("precision", c.c_int32), ("reserved", c.c_int32), ("q", Tensor),
    ("k", Tensor), ("scores", Tensor), ("batch", Batch),
    ("workspace", c.c_void_p), ("workspace_bytes", c.c_size_t))
Select = _struct(
    "Select", ("struct_size", c.c_uint32), ("window", c.c_int32), ("min_tokens", c.c_int32),
    ("share", c.c_int32), ("coverage", c.c_float), ("keep", c.c_float), ("num_kv_heads", c.c_int32),
    ("q_len", c.c_int32), ("k_len", c.c_int32), ("reserved", c.c_int32), ("scores", Tensor),
    ("selected", Sets), ("batch", Batch), ("workspace", c.c_void_p),
    ("workspace_bytes", c.c_size_t))
Compress = _struct(
    "Compress", ("struct_size", c.c_uint32), ("reserved", c.c_uint32), ("q", Tensor),
    ("k", Tensor), ("v", Tensor), ("selected", Sets), ("q_out", Tensor), ("k_out", Tensor),
    ("v_out", Tensor), ("batch", Batch))
Decompress = _struct(
    "Decompress", ("struct_size", c.c_uint32), ("k_len", c.c_int32), ("in_", Tensor),
    ("selected", Sets), ("out", Tensor), ("batch", Batch))
Attend = _struct(
    "Attend", ("struct_size", c.c_uint32), ("scale", c.c_float), ("dropped", c.c_int32),
    ("band", c.c_int32), ("precision", c.c_int32), ("reserved", c.c_int32), ("q", Tensor),
    ("k", Tensor), ("v", Tensor), ("out", Tensor), ("lse", Tensor), ("selected", Sets),
    ("batch", Batch), ("workspace", c.c_void_p), ("workspace_bytes", c.c_size_t))
Prefill = _struct(
    "Prefill", ("struct_size", c.c_uint32), ("scale", c.c_float), ("coverage", c.c_float),
    ("keep", c.c_float), ("window", c.c_int32), ("pool", c.c_int32), ("min_tokens", c.c_int32),
    ("share", c.c_int32), ("dropped", c.c_int32), ("band", c.c_int32), ("precision", c.c_int32),
    ("reserved", c.c_int32), ("q", Tensor), ("k", Tensor), ("v", Tensor), ("out", Tensor),
    ("lse", Tensor), ("selected", Sets), ("batch", Batch), ("workspace", c.c_void_p),
    ("workspace_bytes", c.c_size_t))


def view(t):
    """A torch tensor [tokens, heads, dim] of any strides as a view."""
    return Tensor(data=t.data_ptr(), dtype=DTYPES[t.dtype], tokens=t.shape[0], heads=t.shape[1],
                  dim=t.shape[2], token_stride=t.stride(0), head_stride=t.stride(1),
                  dim_stride=t.stride(2))


class Context:
    """A CUDA context on torch's current stream."""

    def __init__(self, library, isa=None):
        self.lib = c.CDLL(library)
        self.lib.tsp_last_error.restype = c.c_char_p
        self.lib.tsp_context_isa.restype = c.c_char_p
        self.lib.tsp_context_isa.argtypes = [c.c_void_p]
        options = Options(struct_size=c.sizeof(Options))
        options.backend = 2
        options.isa = isa.encode() if isa else None
        options.stream = torch.cuda.current_stream().cuda_stream or None
        self.handle = c.c_void_p()
        self._check(self.lib.tsp_context_create(c.byref(options), c.byref(self.handle)))
        self.isa = self.lib.tsp_context_isa(self.handle).decode()

    def _check(self, status):
        if status != 0:
            raise RuntimeError(self.lib.tsp_last_error().decode())

    def params(self, kind, name):
        p = kind()
        getattr(self.lib, f"tsp_{name}_params_init")(c.byref(p), c.c_uint32(c.sizeof(kind)))
        return p

    def prepare(self, name, p):
        """Allocates the workspace; returns a call without arguments that runs the op."""
        query = getattr(self.lib, f"tsp_{name}_workspace", None) if hasattr(
            p, "workspace_bytes") else None
        memory = None
        if query is not None:
            size = c.c_size_t()
            self._check(query(self.handle, c.byref(p), c.byref(size)))
            memory = torch.empty(size.value, dtype=torch.uint8, device="cuda")
            p.workspace, p.workspace_bytes = memory.data_ptr(), size.value
        op = getattr(self.lib, f"tsp_{name}")

        def run():
            self._check(op(self.handle, c.byref(p)))

        run.memory, run.params = memory, p
        return run
