# SPDX-License-Identifier: MIT
"""torch tensors, and the operations as torch operators."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tokensparse
import tokensparse.torch

SPARSE = {"coverage": 0.3, "window": 16, "min_tokens": 24}


@pytest.fixture
def tensors(qkv):
    return lambda **shape: tuple(torch.from_numpy(x) for x in qkv(**shape))


def test_tensors_equal_arrays(qkv):
    arrays = qkv()
    q, k, v = (torch.from_numpy(x) for x in arrays)
    out, lse, selected = tokensparse.prefill(
        q, k, v, return_lse=True, return_selection=True, **SPARSE
    )
    assert isinstance(out, torch.Tensor) and out.dtype == torch.float32
    assert isinstance(selected.indices, torch.Tensor)
    np.testing.assert_array_equal(out.numpy(), tokensparse.prefill(*arrays, **SPARSE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dense_equals_torchs_own(tensors, dtype):
    q, k, v = (x.to(dtype) for x in tensors(q_len=128, k_len=128))
    out = tokensparse.attend(q, k, v)
    assert out.dtype == dtype
    heads = [x.transpose(0, 1)[None].float() for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *heads, is_causal=True, enable_gqa=True
    )[0].transpose(0, 1)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)


def test_opcheck(tensors):
    q, k, v = tensors()
    scores = tokensparse.score(q, k, window=16)
    selected = tokensparse.select(scores, 96, 96, coverage=0.3, window=16, min_tokens=24)
    for op, args, kwargs in [
        (tokensparse.torch.prefill, (q, k, v), SPARSE),
        (tokensparse.torch.attend, (q, k, v), {}),
        (tokensparse.torch.attend_sets, (q, k, v, selected.indices, selected.kept), {}),
        (tokensparse.torch.score, (q, k, 16), {}),
        (tokensparse.torch.select, (scores, 96, 96, 2), SPARSE),
        (tokensparse.torch.select, (scores, 96, 96, 2, 0.3, 0.0, 16, 24, "kv_group"), {}),
    ]:
        torch.library.opcheck(op, args, kwargs)


def test_compile(tensors):
    def block(q, k, v):
        return torch.ops.tokensparse.prefill(q * 2, k, v, **SPARSE).relu()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (96, 130):
        q, k, v = tensors(q_len=length, k_len=length)
        torch.testing.assert_close(compiled(q, k, v), block(q, k, v), rtol=0, atol=0)


def test_inference_only(tensors):
    q, k, v = tensors()
    q.requires_grad_()
    with pytest.raises(tokensparse.InvalidArgument, match="q: requires_grad .* inference only"):
        tokensparse.prefill(q, k, v, **SPARSE)
    with torch.no_grad():
        tokensparse.prefill(q, k, v, **SPARSE)
    out = torch.ops.tokensparse.prefill(q, k, v, **SPARSE)
    with pytest.raises(RuntimeError, match="backward"):
        out.sum().backward()


def test_bad_tensors(tensors):
    q, k, v = tensors()
    for change, message in [
        (dict(q=q.double()), "q: dtype must be .* is float64"),
        (dict(k=k.to("meta")), "k: must be on the CPU or on a CUDA device, is on meta"),
        (dict(v=v.to_sparse()), "v: must be a dense tensor, has layout torch.sparse_coo"),
        (dict(k=k[:1].expand(96, 2, 64)), "k.token_stride: must not be 0"),
    ]:
        with pytest.raises((TypeError, tokensparse.InvalidArgument), match=message):
            tokensparse.prefill(**{"q": q, "k": k, "v": v, **change})
    with pytest.raises(tokensparse.InvalidArgument, match="share: must be one of"):
        torch.ops.tokensparse.prefill(q, k, v, share="heads")
