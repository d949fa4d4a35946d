# SPDX-License-Identifier: MIT
"""GGUF files as the lab reads them, beside gguf's own reading and transformers'."""
import concurrent.futures
import contextlib
import itertools

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from lab.engines import EngineError, gguf_file  # noqa: E402

TYPES = [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, *gguf.quants._type_traits]


def encoded(kind, rows, columns, bits=0xFF):
    """A matrix of a type as a GGUF file holds it: random bytes of these bits."""
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(kind)
    own = {"F32": np.float32, "F16": np.float16}.get(kind.name)
    if own is not None:
        return random.standard_normal((rows, columns)).astype(own)
    return random.integers(0, 256, (rows, columns // per_block * block_bytes), np.uint8) & np.uint8(bits)


def same_bits(one, other):
    """Any NaN is equal to any other."""
    assert one.shape == other.shape and one.dtype == other.dtype == np.float32
    told = ~np.isnan(one)
    np.testing.assert_array_equal(told, ~np.isnan(other))
    np.testing.assert_array_equal(one.view(np.uint32)[told], other.view(np.uint32)[told])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_pieces_have_the_bits_of_ggufs_own_steps(kind, monkeypatch):
    monkeypatch.setattr(gguf_file, "PIECE", 2048)
    pieces, plain = [], gguf.quants.dequantize
    monkeypatch.setattr(gguf.quants, "dequantize", lambda *of: pieces.append(of) or plain(*of))
    data = encoded(kind, 37, 768)  # 13.9 pieces
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        got = gguf_file.dequantize(data, kind, pool)
    same_bits(got, plain(data, kind))
    assert len(pieces) == (14 if data.dtype == np.uint8 else 1)


@pytest.fixture
def model(tmp_path):
    """A file of four layers of Qwen2 whose matrices are of every type in turn."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    words = [*(chr(97 + at % 26) * (at // 26 + 1) for at in range(256)), "Grüße", "北京", ""]
    writer.add_name("made up")
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_block_count(4)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["a a", "b b", "aa a"])
    writer.add_eos_token_id(5)
    writer.add_array("made.one", ["alone"])
    writer.add_array("made.floats", [0.5, 1e30, -2.0])
    writer.add_array("made.flags", [True, False])
    writer.add_bool("made.flag", True)
    writer.add_float64("made.double", 0.1)
    writer.add_int64("made.long", -(2**40))
    vector = encoded(gguf.GGMLQuantizationType.F32, 1, 256)[0]
    kinds = itertools.cycle(TYPES)

    def add(name, rows, columns):
        kind = next(kinds)
        writer.add_tensor(name, encoded(kind, rows, columns, bits=0xBB), raw_dtype=kind)  # no NaN

    add("token_embd.weight", len(words), 256)
    writer.add_tensor("output_norm.weight", vector)
    for layer in range(4):
        for name in ("attn_norm.weight", "ffn_norm.weight", "attn_q.bias", "attn_k.bias", "attn_v.bias"):
            writer.add_tensor(f"blk.{layer}.{name}", vector)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", 256, 256)
        add(f"blk.{layer}.ffn_gate.weight", 512, 256)
        add(f"blk.{layer}.ffn_up.weight", 512, 256)
        add(f"blk.{layer}.ffn_down.weight", 256, 512)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def test_the_header_is_read_as_gguf_reads_it(model):
    got, plain = gguf_file.Reader(model), gguf.GGUFReader(model)
    assert {name: field.contents() for name, field in got.fields.items()} == {
        name: field.contents() for name, field in plain.fields.items()
    }
    assert [field.types for field in got.fields.values()] == [field.types for field in plain.fields.values()]
    for one, other in zip(got.tensors, plain.tensors, strict=True):
        assert (one.name, one.tensor_type, one.data_offset) == (other.name, other.tensor_type, other.data_offset)
        np.testing.assert_array_equal(one.data, other.data)


def test_convert_writes_what_transformers_reads_by_itself(model, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from lab.engines import hugging_face

    read = []

    class Counted(gguf_file.Reader):
        def __init__(self, path):
            read.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf_file, "Reader", Counted)
    monkeypatch.setattr(gguf_file, "PIECE", 4096)
    hugging_face.convert(model, tmp_path / "quick")
    assert len(read) == 1
    monkeypatch.setattr(gguf_file, "quick", lambda path: contextlib.nullcontext())
    hugging_face.convert(model, tmp_path / "plain")
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert "model.safetensors" in names and "tokenizer.json" in names
    assert names == sorted(path.name for path in (tmp_path / "quick").iterdir())
    for name in names:
        assert (tmp_path / "quick" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name


@pytest.mark.parametrize("kept", [3, 200, 4000, 20000])
def test_a_file_that_is_cut_short_is_told(model, kept):
    model.write_bytes(model.read_bytes()[:kept])
    with pytest.raises(EngineError, match="model: .*m.gguf is no GGUF file that can be read"):
        with gguf_file.quick(model):
            pass
