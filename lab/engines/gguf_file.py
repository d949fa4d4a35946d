# SPDX-License-Identifier: MIT
"""Reading a GGUF file through transformers, in seconds.

transformers reads such a file with the package gguf: its header once for every question (four times for
a model and its tokenizer), each word of a vocabulary as several arrays of numpy, and it dequantises on
one core in steps of 16 rows. Here the header is read once, a word as one view, and dequantised are many
rows at once on every core, by gguf's own arithmetic: the same bits.
"""
import concurrent.futures
import contextlib
import functools
import os
import struct
from unittest import mock

import gguf
import numpy as np

from lab.engines import EngineError

# Elements of a piece: their 1 MB of f32 stays in a core's cache. 2.1 ns an element of Q4_K, 1.8 of Q6_K;
# 11.7 and 11.5 in gguf's own steps over rows of 1,024 (one core of AMD EPYC Zen 5, 2026-11-27).
PIECE = 1 << 18
LENGTH = struct.Struct("<Q")


class Reader(gguf.GGUFReader):
    """Lists of a header as views of the file and as rows of one array."""

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type != gguf.GGUFValueType.ARRAY or self.byte_order == "S":  # swapped
            return super()._get_field_parts(orig_offs, raw_type)
        of, count = struct.unpack_from("<IQ", self.data, orig_offs)
        begin = orig_offs + 12
        if of == gguf.GGUFValueType.STRING:
            end, found = self._strings(begin, count)
        elif of in self.gguf_scalar_to_np:
            values = np.asarray(self._get(begin, self.gguf_scalar_to_np[of], count))  # no memmap: slow
            end, found = begin + values.nbytes, list(values.reshape(-1, 1))
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(of)][: 1 + min(count, 1)]
        return end - orig_offs, found, list(range(count)), types

    def _strings(self, at, count):
        view, found = memoryview(self.data), []
        for _ in range(count):
            (size,) = LENGTH.unpack_from(view, at)
            at += LENGTH.size + size
            found.append(view[at - size : at])
        return at, found


def dequantize(data, kind, pool):
    """gguf.dequantize(data, kind), in pieces that the threads of a pool share."""
    if data.dtype != np.uint8:  # numbers as they are
        return gguf.quants.dequantize(data, kind)
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.asarray(data).reshape(-1, block_bytes)
    values = np.empty((len(blocks), per_block), np.float32)
    step = PIECE // per_block

    def piece(begin):
        row = blocks[begin : begin + step].reshape(1, -1)  # gguf takes a row at once
        values[begin : begin + step] = gguf.quants.dequantize(row, kind).reshape(-1, per_block)

    for _ in pool.map(piece, range(0, len(blocks), step)):
        pass
    return values.reshape(*data.shape[:-1], -1)


@contextlib.contextmanager
def quick(path):
    """Within it transformers reads the file by what stands above, its header once."""
    try:
        reader = Reader(path)
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise EngineError(f"model: {path} is no GGUF file that can be read, or is cut short: {error}") from error
    with (
        concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        mock.patch("gguf.GGUFReader", lambda _: reader),
        mock.patch("gguf.dequantize", functools.partial(dequantize, pool=pool)),
        mock.patch("gguf.get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),  # of each module
    ):
        yield
