# SPDX-License-Identifier: MIT
"""attend and prefill by block sets that the caller brings."""

import dataclasses

import numpy as np
import pytest

import tokensparse
from conftest import dense


@dataclasses.dataclass
class Lists:
    blocks: np.ndarray
    counts: np.ndarray
    columns: np.ndarray | None
    num_columns: np.ndarray | None
    block: int


def lists(rows, num_blocks, **columns):
    """One sequence, one set: rows[m] = the key blocks of query block m."""
    blocks = np.full((1, 1, len(rows), num_blocks), -1, np.int32)
    for m, row in enumerate(rows):
        blocks[0, 0, m, : len(row)] = row
    counts = np.array([[[len(row) for row in rows]]], np.int32)
    given = {"columns": None, "num_columns": None, **columns}
    return Lists(blocks, counts, given["columns"], given["num_columns"], 16)


def test_attend_by_blocks(qkv):
    q, k, v = qkv(q_len=40, k_len=72, q_heads=2, kv_heads=1)
    rows = [[0, 2], [3], [1, 4]]
    columns = np.array([[[5, 33]]], np.int32)
    blocks = lists(rows, 5, columns=columns, num_columns=np.array([[2]], np.int32))
    out, lse = tokensparse.attend(q, k, v, blocks=blocks, return_lse=True)
    for row in range(40):
        position = 32 + row
        seen = [
            j
            for j in range(position + 1)
            if j // 16 in rows[row // 16] or j in (5, 33)
        ]
        expected, _ = dense(q[row : row + 1], k[seen], v[seen])
        np.testing.assert_allclose(out[row : row + 1], expected, atol=2e-6)
    same = tokensparse.prefill(q, k, v, coverage=0, blocks=blocks)
    np.testing.assert_array_equal(out, same)
    everything = lists([range(3), range(4), range(5)], 5)
    np.testing.assert_array_equal(
        tokensparse.attend(q, k, v), tokensparse.attend(q, k, v, blocks=everything)
    )


def test_blocks_of_kept_tokens(qkv):
    q, k, v = qkv(q_len=64, k_len=64)
    kept = np.arange(0, 64, 2, dtype=np.int32)
    sets = tokensparse.Selection(np.zeros((1, 1, 64), np.int32), np.array([32], np.int32))
    sets.indices[0, 0, :32] = kept
    out = tokensparse.prefill(q, k, v, sets=sets, blocks=lists([[0], [1]], 2))
    for half in (kept[:16], kept[16:]):
        np.testing.assert_allclose(out[half], dense(q[half], k[half], v[half])[0], atol=2e-6)


def test_bad_blocks(qkv):
    q, k, v = qkv(q_len=40, k_len=72)
    good = lists([[0, 2], [3], [1, 4]], 5)
    for change, message in [
        ({"blocks": good.blocks.astype("i8")}, "blocks.blocks: dtype must be int32, is int64"),
        ({"blocks": good.blocks[0]}, r"blocks.blocks: must be \[num_seqs, S, M, L\]"),
        ({"counts": good.counts[:, :, :2]}, "blocks.counts: must have as many query blocks"),
        ({"blocks": good.blocks[..., ::-1]}, "blocks.blocks: the last axis must be contiguous"),
        ({"block": 24}, "blocks.block: must be a multiple of 16 between 16 and 512"),
        ({"counts": good.counts * 0}, "blocks.counts: must be between 1 and"),
        ({"columns": good.counts}, "blocks.num_columns: must not be null"),
    ]:
        with pytest.raises((TypeError, tokensparse.InvalidArgument), match=message):
            tokensparse.attend(q, k, v, blocks=dataclasses.replace(good, **change))
    with pytest.raises(tokensparse.InvalidArgument, match="must be null where tokens are chosen"):
        tokensparse.prefill(q, k, v, blocks=good)


@pytest.mark.parametrize(
    ("pattern", "own"),
    [
        ("xattention", dict(threshold=0.6, stride=4)),
        ("minference", dict(vertical=40, slash=60)),
        ("pooled", dict(threshold=0.6)),
    ],
)
def test_prefill_by_a_pattern(pattern, own):
    rng = np.random.default_rng(5)
    q = rng.standard_normal((400, 4, 32), dtype=np.float32) * 3
    k, v = (rng.standard_normal((400, 2, 32), dtype=np.float32) for _ in range(2))
    vote = dict(coverage=0.2, window=16, min_tokens=20, share="kv_group")
    rows = dict(dropped="local", sink=3, band=9)
    options = dict(block=16, **own)
    found, kept = tokensparse.prefill(
        q, k, v, **vote, **rows, pattern=pattern, pattern_options=options, return_selection=True
    )
    assert kept.kept[0] < 400
    blocks = tokensparse.estimate(q, k, pattern, selected=kept, **options)
    by_hand = tokensparse.attend(q, k, v, kept, blocks=blocks, **rows)
    np.testing.assert_array_equal(by_hand, found)
    assert (found != tokensparse.prefill(q, k, v, **vote, **rows)).any()
    _, pairs = tokensparse.prefill(
        q, k, v, **vote, **rows, pattern=pattern, pattern_options=options, return_pairs=True
    )
    _, of_tokens = tokensparse.prefill(q, k, v, **vote, **rows, return_pairs=True)
    assert 0 < pairs < of_tokens < len(q) * (len(q) + 1) / 2
    with pytest.raises(tokensparse.InvalidArgument, match="gamma: must be a parameter of xattention"):
        tokensparse.estimate(q, k, "xattention", gamma=0.5)
    with pytest.raises(tokensparse.InvalidArgument, match="pattern_options: must be None"):
        tokensparse.prefill(q, k, v, pattern_options=options)
