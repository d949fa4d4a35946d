# SPDX-License-Identifier: MIT
"""The operations on numpy arrays and on whatever speaks DLPack."""

import concurrent.futures
import os

import numpy as np
import pytest

import tokensparse
from conftest import dense

SPARSE = {"coverage": 0.3, "window": 16, "min_tokens": 24}


def test_dense_equals_textbook_attention(qkv):
    q, k, v = qkv(q_len=70, k_len=133)
    out, lse = tokensparse.attend(q, k, v, return_lse=True)
    expected, expected_lse = dense(q, k, v)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-6)
    assert out.dtype == np.float32 and out.flags.c_contiguous


@pytest.mark.parametrize("share", ["head", "kv_group", "layer"])
def test_prefill_is_its_parts(qkv, share):
    q, k, v = qkv(q_len=200, k_len=200)
    out, lse, selected = tokensparse.prefill(
        q, k, v, share=share, return_lse=True, return_selection=True, **SPARSE
    )
    scores = tokensparse.score(q, k, window=16)
    assert scores.shape == (184, 4) and scores.dtype == np.float32
    parts = tokensparse.select(
        scores, 200, 200, num_kv_heads=2, share=share, coverage=0.3, window=16, min_tokens=24
    )
    kept = int(selected.kept[0])
    assert 40 <= kept < 200
    assert kept == int(parts.kept[0])
    num_sets = {"head": 4, "kv_group": 2, "layer": 1}[share]
    assert selected.indices.shape == (1, num_sets, 200)
    for index in range(num_sets):
        tokens = selected.tokens(set=index)
        np.testing.assert_array_equal(tokens, parts.tokens(set=index))
        assert (np.diff(tokens) > 0).all() and set(range(184, 200)) <= set(tokens.tolist())
    again, again_lse = tokensparse.attend(q, k, v, parts, return_lse=True)
    np.testing.assert_array_equal(out, again)
    np.testing.assert_array_equal(lse, again_lse)


def test_masked_dense_attention_is_the_oracle(qkv):
    q, k, v = qkv(q_len=160, k_len=160, q_heads=2, kv_heads=2)
    out, selected = tokensparse.prefill(q, k, v, return_selection=True, **SPARSE)
    for head in range(2):
        tokens = selected.tokens(set=head)
        rows = (slice(None), slice(head, head + 1))
        expected, _ = dense(q[tokens][rows], k[tokens][rows], v[tokens][rows])
        np.testing.assert_allclose(out[tokens][rows], expected, atol=2e-6)
        left_out = np.setdiff1d(np.arange(160), tokens)
        assert left_out.size and not out[left_out][rows].any()


def test_coverage_zero_is_exact(qkv):
    q, k, v = qkv(q_len=96, k_len=150)
    out, kept = tokensparse.prefill(q, k, v, coverage=0, return_kept=True)
    np.testing.assert_array_equal(out, tokensparse.attend(q, k, v))
    assert kept.tolist() == [150]


def test_left_out_queries_see_sinks_and_a_band(qkv):
    q, k, v = qkv(q_len=160, k_len=160, q_heads=2, kv_heads=2)
    local = dict(dropped="local", sink=6, band=11, **SPARSE)
    out, selected = tokensparse.prefill(q, k, v, return_selection=True, **local)
    np.testing.assert_array_equal(
        tokensparse.attend(q, k, v, selected, dropped="local", sink=6, band=11), out
    )
    row = next(i for i in range(100, 0, -1) if i not in selected.tokens(set=0))
    seen = [*range(6), *range(row - 10, row + 1)]
    expected, _ = dense(q[row : row + 1, :1], k[seen, :1], v[seen, :1])
    np.testing.assert_allclose(out[row : row + 1, :1], expected, atol=2e-6)


def test_given_sets(qkv):
    q, k, v = qkv(q_len=90, k_len=160)
    out, selected = tokensparse.prefill(q, k, v, share="layer", return_selection=True, **SPARSE)
    again, copied, kept = tokensparse.prefill(
        q, k, v, sets=selected, return_selection=True, return_kept=True
    )
    np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(copied.tokens(), selected.tokens())
    assert kept.tolist() == selected.kept.tolist()
    wrong = tokensparse.Selection(selected.indices[:, :, ::2], selected.kept)
    with pytest.raises(tokensparse.InvalidArgument, match="sets.indices: the last axis must be con"):
        tokensparse.prefill(q, k, v, sets=wrong)


def test_when_it_pays(qkv):
    q, k, v = qkv(q_len=200, k_len=200)
    assert not np.array_equal(tokensparse.prefill(q, k, v, **SPARSE), tokensparse.attend(q, k, v))
    with pytest.raises(tokensparse.InvalidArgument, match="when: must be one of always, pays, is 'n'"):
        tokensparse.prefill(q, k, v, when="n")
    long = qkv(q_len=1200, k_len=1200)
    kept = tokensparse.prefill(*long, coverage=1e-4, when="pays", return_kept=True, min_tokens=1)[1]
    assert kept.tolist() == [1200]


def test_numbers_of_the_wrong_kind_or_size(qkv):
    q, k, v = qkv()
    for change, error, message in [
        (dict(window=2**32 + 16), tokensparse.InvalidArgument, "window: must fit in 32 bits, is 42"),
        (dict(window=1.5), TypeError, "window: must be a whole number, is 1.5"),
        (dict(coverage="x"), TypeError, "coverage: must be a number, is 'x'"),
        (dict(sink=-1), tokensparse.InvalidArgument, "sink: must be between 0 and"),
    ]:
        with pytest.raises(error, match=message):
            tokensparse.prefill(q, k, v, **{**SPARSE, **change})


def test_subclasses_of_arrays(qkv, tmp_path):
    q, k, v = qkv()
    masked = np.ma.array(k, mask=np.arange(k.size).reshape(k.shape) % 7 == 0)
    for name, call in [
        ("k", lambda: tokensparse.attend(q, masked, v)),
        ("q", lambda: tokensparse.score(np.ma.array(q), k)),
        ("out", lambda: tokensparse.attend(q, k, v, out=np.ma.array(np.empty_like(q)))),
    ]:
        with pytest.raises(tokensparse.InvalidArgument, match=f"{name}: masked arrays are not sup"):
            call()
    np.save(tmp_path / "k.npy", k)
    mapped = np.load(tmp_path / "k.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(tokensparse.attend(q, mapped, v), tokensparse.attend(q, k, v))

    class Lazy:
        def __array__(self, *args, **kwargs):
            return k

    with pytest.raises(TypeError, match="k: must be an array .* is Lazy"):
        tokensparse.attend(q, Lazy(), v)


def test_compress_and_decompress(qkv):
    q, k, v = qkv(q_len=160, k_len=160)
    out, selected = tokensparse.prefill(q, k, v, return_selection=True, **SPARSE)
    cq, ck, cv = tokensparse.compress(q, k, v, selected)
    kept = int(selected.kept[0])
    assert cq.shape == ck.shape == cv.shape == (kept, 4, 64)
    np.testing.assert_array_equal(ck[:, 3], k[selected.tokens(set=3), 1])
    short = tokensparse.attend(cq, ck, cv)
    full = tokensparse.decompress(short, selected, 160, 160)
    np.testing.assert_allclose(full, out, atol=1e-6)
    nothing, ck_only, _ = tokensparse.compress(None, k, v, selected)
    assert nothing is None
    np.testing.assert_array_equal(ck_only, ck)


def test_strided_views_need_no_copy(qkv):
    q, k, v = qkv(q_len=80, k_len=130)
    expected = tokensparse.prefill(q, k, v, **SPARSE)
    head_major = np.ascontiguousarray(k.transpose(1, 0, 2)).transpose(1, 0, 2)
    transposed = np.ascontiguousarray(v.transpose(1, 2, 0)).transpose(2, 0, 1)
    assert not head_major.flags.c_contiguous and transposed.strides[2] != 4
    room = np.full((80, 8, 64), np.nan, np.float32)
    out = room[:, ::2]
    result = tokensparse.prefill(q, head_major, transposed, out=out, **SPARSE)
    assert result is out
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert np.isnan(room[:, 1::2]).all()


def test_batch_equals_its_sequences(qkv):
    lengths = [(40, 40), (30, 100), (1, 77)]
    parts = [qkv(q_len=a, k_len=b, seed=i) for i, (a, b) in enumerate(lengths)]
    q, k, v = (np.concatenate([p[i] for p in parts]) for i in range(3))
    q_offsets = np.cumsum([0] + [a for a, _ in lengths])
    k_offsets = np.cumsum([0] + [b for _, b in lengths])
    out, kept = tokensparse.prefill(
        q, k, v, q_offsets=q_offsets, k_offsets=k_offsets, return_kept=True, **SPARSE
    )
    for i, part in enumerate(parts):
        alone, alone_kept = tokensparse.prefill(*part, return_kept=True, **SPARSE)
        np.testing.assert_allclose(out[q_offsets[i] : q_offsets[i + 1]], alone, atol=1e-6)
        assert kept[i] == alone_kept[0]


def test_paged_keys_and_values(qkv):
    q, k, v = qkv(q_len=50, k_len=75)
    blocks = np.array([[6, 1, 4, 0, 3]], np.int32)  # blocks of 16 tokens, scattered
    # One cache as vLLM lays it out: [blocks, heads, K then V], K of a block transposed.
    cache = np.full((8, 2, 2, 64 * 16), np.nan, np.float32)
    for i, block in enumerate(blocks[0]):
        rows = slice(16 * i, min(16 * i + 16, 75))
        count = rows.stop - rows.start
        for head in range(2):
            cache[block, head, 0].reshape(64, 16)[:, :count] = k[rows, head].T
            cache[block, head, 1].reshape(16, 64)[:count] = v[rows, head]
    k_pages = cache[:, :, 0].reshape(8, 2, 64, 16).transpose(0, 3, 1, 2)
    v_pages = cache[:, :, 1].reshape(8, 2, 16, 64).transpose(0, 2, 1, 3)
    out = tokensparse.prefill(
        q,
        tokensparse.Paged(k_pages, blocks),
        tokensparse.Paged(v_pages, blocks),
        q_offsets=[0, 50],
        k_offsets=[0, 75],
        **SPARSE,
    )
    np.testing.assert_allclose(out, tokensparse.prefill(q, k, v, **SPARSE), atol=1e-6)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precisions(qkv, name):
    dtype = np.dtype(np.float16)
    if name == "bfloat16":
        dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    q, k, v = qkv(dtype=dtype)
    out = tokensparse.attend(q, k, v)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(np.float32), dense(q, k, v)[0], atol=1e-2)


class Foreign:
    """An array that offers DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    shape = property(lambda self: self._array.shape)

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_dlpack(qkv):
    q, k, v = qkv()
    out = tokensparse.prefill(Foreign(q), Foreign(k), Foreign(v.transpose(0, 1, 2)), **SPARSE)
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, tokensparse.prefill(q, k, v, **SPARSE))
    room = np.zeros_like(q)
    tokensparse.prefill(q, k, v, out=Foreign(room), **SPARSE)
    np.testing.assert_array_equal(out, room)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_threads_and_forks(qkv):
    q, k, v = qkv(q_len=200, k_len=200)
    expected = tokensparse.prefill(q, k, v, **SPARSE)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: tokensparse.prefill(q, k, v, **SPARSE), range(16)):
            np.testing.assert_array_equal(result, expected)
    child = os.fork()
    if child == 0:
        same = np.array_equal(tokensparse.prefill(q, k, v, **SPARSE), expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_contexts(qkv):
    q, k, v = qkv()
    context = tokensparse.Context("ref", threads=1)
    assert (context.backend, context.isa, context.threads) == ("ref", "double", 1)
    out = tokensparse.prefill(q, k, v, context=context, **SPARSE)
    np.testing.assert_allclose(out, tokensparse.prefill(q, k, v, **SPARSE), atol=2e-6)
    with pytest.raises(tokensparse.InvalidArgument, match="backend: must be one of cpu, ref, cuda"):
        tokensparse.Context("tpu")
    with pytest.raises(tokensparse.Error, match="isa"):
        tokensparse.Context("cpu", isa="mmx")


def test_version_is_the_packages():
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        assert installed("tokensparse") == tokensparse.__version__
    except PackageNotFoundError:
        pytest.skip("run from the source tree, not installed")


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


BAD = {
    "q: dtype must be float32 or float16 or bfloat16, is float64": dict(q=lambda x: x.astype("f8")),
    "v: dtype must be float32 or float16 or bfloat16, is int64": dict(v=lambda x: x.astype("i8")),
    "v.dtype: must": dict(v=lambda x: x.astype("f2")),
    "k: dtype must be in native byte order, is >f4": dict(k=lambda x: x.astype(">f4")),
    r"q: must have 3 dimensions \[tokens, heads, dim\], has 2": dict(q=lambda x: x[0]),
    r"k: must have 3 dimensions \[tokens, heads, dim\], has 4": dict(k=lambda x: x[None]),
    "q: strides must not be negative": dict(q=lambda x: x[::-1]),
    "v: strides must not be negative": dict(v=lambda x: x[:, :, ::-1]),
    "k: must be an array .* is list": dict(k=lambda x: x.tolist()),
    "q: must be an array .* is NoneType": dict(q=lambda x: None),
    "out: must be writable, is read-only": dict(out=_read_only),
    "out: dtype must be": dict(out=lambda x: x.astype("f8")),
    "out.*must.*96": dict(out=lambda x: x[:5]),
    "k.heads: must divide the query heads": dict(k=lambda x: x[:, [0, 1, 0]]),
    "k.dim: must equal the head dim of q": dict(k=lambda x: x[..., :32]),
    r"coverage: must be in \[0, 1\), got 1.5": dict(coverage=1.5),
    "window: must be": dict(window=0),
    "pool: must be odd": dict(pool=4),
    "share: must be one of head, kv_group, layer, is 'heads'": dict(share="heads"),
    "dropped: must be one of zero, local, is 'mean'": dict(dropped="mean"),
    "precision: must be one of f32, bf16, is 'fp8'": dict(precision="fp8"),
    "q_offsets: must be given with the other offsets": dict(k_offsets=[0, 96]),
    "q_offsets: must be the num_seqs": dict(q_offsets=[0], k_offsets=[0]),
    "k_offsets: must have as many entries": dict(q_offsets=[0, 96], k_offsets=[0, 90, 96]),
    "sequence 0: must not have more queries": dict(q_offsets=[0, 99], k_offsets=[0, 96]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_sentence(qkv, message):
    arguments = dict(zip(("q", "k", "v"), qkv()), out=np.zeros((96, 4, 64), np.float32))
    for name, change in BAD[message].items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    with pytest.raises((TypeError, tokensparse.InvalidArgument), match=message):
        tokensparse.prefill(**arguments)


def test_bad_selection(qkv):
    q, k, v = qkv()
    _, selected = tokensparse.prefill(q, k, v, return_selection=True, **SPARSE)
    for change, message in [
        (lambda i, n: (i.astype("i8"), n), "selected.indices: dtype must be int32, is int64"),
        (lambda i, n: (i[0], n), r"selected.indices: must be \[num_seqs, S, L\]"),
        (lambda i, n: (i, n[:0]), "selected.kept: must have one entry for each of 1 sequences"),
        (lambda i, n: (i[:, :3], n), "num_sets"),
        (lambda i, n: (i[:, :, ::-1], n), "selected.indices: the last axis must be contiguous"),
    ]:
        bad = tokensparse.Selection(*change(selected.indices, selected.kept))
        with pytest.raises((TypeError, tokensparse.InvalidArgument), match=message):
            tokensparse.attend(q, k, v, bad)


@pytest.mark.parametrize("pattern", ["xattention", "flexprefill", "minference", "pooled", "flash"])
def test_estimate(pattern):
    rng = np.random.default_rng(3)
    q = rng.standard_normal((300, 4, 32), dtype=np.float32)
    k = rng.standard_normal((400, 2, 32), dtype=np.float32)
    own = {"flexprefill": {"min_budget": 32}, "minference": {"vertical": 40, "slash": 60}}
    options = {"block": 16, **own.get(pattern, {})}
    got = tokensparse.estimate(q, k, pattern, **options)
    ref = tokensparse.Context("ref")
    want = tokensparse.estimate(q, k, pattern, context=ref, **options)
    assert got.blocks.shape == (1, 4, 19, 25) and got.block == 16
    np.testing.assert_array_equal(got.counts, want.counts)
    for head, row in np.ndindex(4, 19):
        count = got.counts[0, head, row]
        named = got.blocks[0, head, row, :count]
        np.testing.assert_array_equal(named, want.blocks[0, head, row, :count])
        assert (np.diff(named) > 0).all() and (100 + row * 16) // 16 in named
    assert (got.columns is not None) == (pattern == "minference")


def test_estimate_refuses():
    q, k = np.zeros((64, 4, 32), np.float32), np.zeros((64, 2, 32), np.float32)
    with pytest.raises(tokensparse.InvalidArgument, match="pattern: must be one of xattention"):
        tokensparse.estimate(q, k, "none")
    with pytest.raises(TypeError, match="stryde: no parameter"):
        tokensparse.estimate(q, k, "xattention", stryde=8)
    with pytest.raises(tokensparse.InvalidArgument, match="pattern.stride: must divide"):
        tokensparse.estimate(q, k, "xattention", stride=3)
    with pytest.raises(tokensparse.InvalidArgument, match="threshold: must be one number or 4"):
        tokensparse.estimate(q, k, "pooled", threshold=[0.5, 0.5])
    per_head = tokensparse.estimate(q, k, "pooled", threshold=[0.1, 0.1, 0.1, 1.0], block=16)
    np.testing.assert_array_equal(per_head.counts[0, :, 3], [1, 1, 1, 4])


def test_selection_check():
    def selection(rows, kept):
        return tokensparse.Selection(np.array([rows], np.int32), np.array([kept], np.int32))

    selection([[0, 3, 9], [1, 2, 3]], 3).check([10])
    selection([[7, 7, 7]], 3).check([3])  # keeps everything: the list is not read
    for rows, kept, message in [
        ([[0, 3, 10]], 3, r"indices\[0, 0\]: must be ascending and unique in 0 .. 9"),
        ([[0, 3, 9], [2, 2, 3]], 3, r"indices\[0, 1\]"),
        ([[3, 1, 9]], 3, r"indices\[0, 0\]"),
        ([[-1, 1, 9]], 3, r"indices\[0, 0\]"),
        ([[0, 3, 9]], 0, r"kept\[0\]: must lie in 1 .. 3, is 0"),
        ([[0, 3, 9]], 4, r"kept\[0\]: must lie in 1 .. 3, is 4"),
    ]:
        with pytest.raises(tokensparse.InvalidArgument, match=message):
            selection(rows, kept).check([10])
    with pytest.raises(tokensparse.InvalidArgument, match="k_lens: must have one length"):
        selection([[0]], 1).check([3, 4])
