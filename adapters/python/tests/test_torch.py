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
        (tokensparse.torch.prefill, (q, k, v), {**SPARSE, "blocks": "flash,block=16"}),
        (tokensparse.torch.attend, (q, k, v), {}),
        (tokensparse.torch.attend_sets, (q, k, v, selected.indices, selected.kept), {}),
        (tokensparse.torch.score, (q, k, 16), {}),
        (tokensparse.torch.select, (scores, 96, 96, 2), SPARSE),
        (tokensparse.torch.select, (scores, 96, 96, 2, 0.3, 0.0, 16, 24, "kv_group"), {}),
    ]:
        torch.library.opcheck(op, args, kwargs)


def test_prefill_by_blocks(tensors):
    q, k, v = tensors(q_len=200, k_len=300)
    pooled = dict(pattern="pooled", pattern_options=dict(block=16, threshold=0.4))
    for tokens in (dict(coverage=0.0), SPARSE):
        out = tokensparse.torch.prefill(q, k, v, **tokens, blocks="pooled,block=16,threshold=0.4")
        assert torch.equal(out, tokensparse.prefill(q, k, v, **tokens, **pooled))
        assert not torch.equal(out, tokensparse.torch.prefill(q, k, v, **tokens))
    for text, message in (
        ("pooled,threshold=1.5", "blocks: .*threshold"),
        ("pooled,stride=8", "blocks: .*stride"),
        ("boxes", "blocks: .*boxes"),
    ):
        with pytest.raises(RuntimeError, match=message):
            tokensparse.torch.prefill(q, k, v, coverage=0.0, blocks=text)


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


def test_tensors_that_are_not_their_memory(tensors):
    q, k, v = tensors()
    fake = torch._subclasses.FakeTensorMode()
    mask = torch.zeros_like(k, dtype=torch.bool)
    for bad, message in [
        (torch.complex(k, k).conj().imag, r"a negated view: pass k.resolve_neg\(\)"),
        (fake.from_tensor(k), "FakeTensor"),
        (torch.masked.masked_tensor(k, ~mask), "MaskedTensor"),
        (torch.nested.nested_tensor([k, k]), "nested"),
        (torch._efficientzerotensor(k.shape), "a tensor of zeros without memory"),
    ]:
        with pytest.raises(tokensparse.InvalidArgument, match=f"k: must be a plain tensor, is {message}"):
            tokensparse.attend(q, bad, v)
    quantised = torch.quantize_per_tensor(k, 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match="k: dtype must be .* is qint8"):
        tokensparse.attend(q, quantised, v)
    with pytest.raises(tokensparse.InvalidArgument, match="k: must be a plain tensor, is a tensor of"):
        torch.func.vmap(lambda x: tokensparse.attend(q, x, v))(k[None])
    assert torch.equal(tokensparse.attend(q, torch.nn.Parameter(k, False), v), tokensparse.attend(q, k, v))


def test_lazy_parameters_and_memory_that_is_gone(tensors):
    q, k, v = tensors()
    freed, cut = k.clone(), k.clone()
    freed.untyped_storage().resize_(0)
    cut.untyped_storage().resize_(k.nbytes - 4)
    for bad, message in [
        (torch.nn.parameter.UninitializedParameter(), "is a lazy parameter without a shape yet"),
        (freed, f"k: needs {k.nbytes} bytes of memory, its storage has 0"),
        (cut, f"k: needs {k.nbytes} bytes of memory, its storage has {k.nbytes - 4}"),
    ]:
        with pytest.raises(tokensparse.InvalidArgument, match=message):
            tokensparse.attend(q, bad, v)
    want = tokensparse.attend(q, k, v)
    for same in (torch._lazy_clone(k.clone()), k.transpose(0, 1).contiguous().transpose(0, 1),
                 torch.cat((k, k))[: len(k)], torch.cat((k, k), 2)[..., : k.shape[2]]):  # fmt: skip
        assert torch.equal(tokensparse.attend(q, same, v), want)


def test_recording_refuses_what_it_would_bake_in(tensors):
    q, k, v = tensors()
    attend = lambda q, k, v: tokensparse.attend(q, k, v)  # noqa: E731
    from torch.fx.experimental.proxy_tensor import make_fx

    for record in (lambda: torch.jit.trace(attend, (q, k, v)), lambda: make_fx(attend)(q, k, v)):
        with pytest.raises(tokensparse.InvalidArgument, match="q: cannot be recorded by"):
            record()
    assert torch.equal(attend(q, k, v), torch.ops.tokensparse.attend(q, k, v)[0])


def test_operators_equal_functions(tensors):
    q, k, v = tensors(k_len=130)
    op = torch.ops.tokensparse
    settings = {"share": "kv_group", "dropped": "local", "sink": 5, "band": 9, **SPARSE}
    out, selected = tokensparse.prefill(q, k, v, return_selection=True, **settings)
    assert torch.equal(op.prefill(q, k, v, **settings), out)
    for precision in ("f32", "bf16"):
        found = op.attend(q, k, v, precision=precision, scale=0.2)
        expected = tokensparse.attend(q, k, v, precision=precision, scale=0.2, return_lse=True)
        assert all(map(torch.equal, found, expected))
    scores = op.score(q, k, window=16)
    assert torch.equal(scores, tokensparse.score(q, k, window=16))
    indices, kept = op.select(scores, 96, 130, 2, share="kv_group", **SPARSE)
    assert torch.equal(kept, selected.kept) and 40 < kept < 130
    assert torch.equal(indices[:, :, :kept], selected.indices[:, :, :kept])
    found, _ = op.attend_sets(q, k, v, indices, kept, dropped="local", sink=5, band=9)
    assert torch.equal(found, out)
    half = [x.transpose(0, 1).contiguous().transpose(0, 1).bfloat16() for x in (q, k, v)]
    assert torch.equal(op.prefill(*half, **SPARSE), tokensparse.prefill(*half, **SPARSE))


def test_operators_follow_torchs_threads(tensors):
    q, k, v = tensors(q_len=300, k_len=300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = torch.ops.tokensparse.prefill(q, k, v, **SPARSE)
        torch.set_num_threads(4)
        assert torch.equal(torch.ops.tokensparse.prefill(q, k, v, **SPARSE), one)
        assert torch.equal(tokensparse.prefill(q, k, v, **SPARSE), one)
    finally:
        torch.set_num_threads(before)


def test_bad_arguments_of_operators(tensors):
    q, k, v = tensors()
    for change, message in [
        (dict(q=q.double()), "q: dtype must be float32, float16 or bfloat16"),
        (dict(q=q[0]), r"q: must have 3 dimensions \[tokens, heads, dim\], has 2"),
        (dict(k=k[..., :32]), "k.dim: must equal the head dim of q"),
        (dict(k=k[:1].expand(96, 2, 64)), "k.token_stride: must not be 0"),
        (dict(share="heads"), "share: must be one of head, kv_group, layer, is 'heads'"),
        (dict(coverage=1.5), r"coverage: must be in \[0, 1\), got 1.5"),
        (dict(window=2**31), "window: must fit in 32 bits, is 2147483648"),
        (dict(pool=4), "pool: must be odd"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.tokensparse.prefill(**{"q": q, "k": k, "v": v, **change})
    scores = tokensparse.score(q, k, window=16)
    indices, kept = torch.ops.tokensparse.select(scores, 96, 96, 2, **SPARSE)
    for bad, message in [
        ((indices.long(), kept), "indices: dtype must be int32"),
        ((indices[0], kept), r"indices: must have 3 dimensions \[1, S, L\], has 2"),
        ((indices[:, :3], kept), "num_sets"),
        ((indices, kept.repeat(2)), "must be of one sequence, are of 1 and 2"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.tokensparse.attend_sets(q, k, v, *bad)
