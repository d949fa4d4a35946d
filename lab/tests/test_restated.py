# SPDX-License-Identifier: MIT
"""The restated method against the definition as a mask, entry by entry."""
import pytest

torch = pytest.importorskip("torch")

from lab.engines import EngineError, blocks, restated, sparse_layers  # noqa: E402  torch may be missing


def oracle(q, k, v, scale, sets, sink, band, dropped):
    heads, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    group, offset = heads // k.shape[0], keys - q.shape[1]
    out = torch.zeros_like(q)
    pairs = 0
    for h in range(heads):
        kept = set(sets[h * sets.shape[0] // heads].tolist())
        for r in range(rows):
            i = r + offset
            if i in kept:
                see = [j for j in range(i + 1) if j in kept]
            elif dropped == "local":
                see = [j for j in range(i + 1) if j < sink or j > i - band]
            else:
                continue
            pairs += len(see)
            w = (q[h, r] @ k[h // group, see].T * scale).softmax(-1)
            out[h, r] = w @ v[h // group, see]
    return out, pairs / heads


@pytest.mark.parametrize("share", ["head", "kv_group", "layer"])
@pytest.mark.parametrize("dropped", ["zero", "local"])
@pytest.mark.parametrize("rows", [96, 40])
def test_attend_is_the_masked_definition(share, dropped, rows):
    torch.manual_seed(7)
    keys, scale = 96, 0.3
    q, k, v = (torch.randn(h, n, 8, dtype=torch.float64) for h, n in ((4, rows), (2, keys), (2, keys)))
    setting = {"share": share, "dropped": dropped, "coverage": 0.4, "window": 8, "pool": 3,
               "min_tokens": 10, "sink": 5, "band": 7}  # fmt: skip
    sets = restated.select(q, k, scale, setting)
    assert sets is not None and 18 <= sets.shape[1] < keys
    assert (sets.diff(dim=1) > 0).all()
    out, pairs, kept = restated.attend(q, k, v, scale, setting)
    wanted, counted = oracle(q, k, v, scale, sets, 5, 7, dropped)
    torch.testing.assert_close(out, wanted)
    assert pairs == pytest.approx(counted) and kept == sets.shape[1] / keys


ALL = {
    "vertical_slash": {"gamma": 1.0},
    "minference": {"vertical": 300, "slash": 300},
    "flexprefill": {"gamma": 1.0, "min_budget": 0},
}


@pytest.mark.parametrize("method", ["xattention", "pooled", "true_mass", *ALL])
def test_a_pattern_that_drops_nothing_is_dense(method):
    torch.manual_seed(7)
    q, k, v = (torch.randn(h, 300, 16) for h in (4, 2, 2))
    pattern = {"method": method, **ALL.get(method, {"threshold": 1.0})}
    setting = {"coverage": 0, "blocks": pattern}
    out, pairs, kept = restated.attend(q, k, v, 0.25, setting)
    torch.testing.assert_close(out, restated.causal(q, k, v, 0.25), atol=1e-5, rtol=1e-5)
    assert pairs == 300 * 301 / 2 and kept == 1


@pytest.mark.parametrize("method", ["xattention", "pooled", "true_mass"])
@pytest.mark.parametrize("heads", [4, 2])
def test_a_block_pattern_is_its_mask(method, heads):
    torch.manual_seed(7)
    q, k, v = (torch.randn(h, 700, 16, dtype=torch.float64) for h in (heads, 2, 2))
    pattern = {"method": method, "threshold": 0.6}
    chosen = blocks.chosen(q, k, 0.5, pattern)
    assert 0.2 < chosen.float().mean() < 0.6  # some left out, and rows of different numbers
    at = torch.arange(700) // blocks.BLOCK
    wanted, counted = restated.masked(
        q, k, v, 0.5, lambda begin, end: chosen[:, at[begin:end]][:, :, at[:end]]
    )
    out, pairs = blocks.attend(q, k, v, 0.5, chosen)
    torch.testing.assert_close(out, wanted)
    assert float(pairs) == pytest.approx(counted)


def test_minference_reads_the_blocks_of_its_slashes_and_its_columns():
    """One strong slash 300 back, and a strong column at 70."""
    torch.manual_seed(7)
    k = torch.nn.functional.normalize(torch.randn(1, 640, 64, dtype=torch.float64), dim=-1)
    q = k.roll(300, 1) + k[:, 70:71]  # each looks 300 back, and at 70
    verticals, chosen = blocks.minference(q * 40, k, 1.0, vertical=31, slash=100)
    assert verticals[0, :30].all() and verticals[0, 70] and verticals.sum() == 31
    distances = {m - n for m, n in chosen[0].nonzero().tolist()}
    assert distances == {0, 1}  # the first 100 slashes go before the strong one
    _, chosen = blocks.minference(q * 40, k, 1.0, vertical=31, slash=101)
    distances = {m - n for m, n in chosen[0].nonzero().tolist()}
    assert distances == {0, 1, 2, 3}  # 300 back lies in blocks 2 and 3 before


def test_flexprefill_takes_lines_where_pooled_blocks_tell_otherwise():
    torch.manual_seed(7)
    q, k = torch.randn(4, 1280, 16), torch.randn(2, 1280, 16)
    lines = blocks.flexprefill(q, k, 0.25, gamma=0.5, tau=0.0, min_budget=256)
    offsets = [{m - n for m, n in head.nonzero().tolist() if n} for head in lines]
    column = [head[-1].nonzero()[:, 0].tolist() for head in lines]
    for head, offset, columns in zip(lines, offsets, column):
        wanted = {(m, n) for m in range(10) for n in range(m + 1)}
        wanted = {(m, n) for m, n in wanted if n in columns and head[-1, n] or m - n in offset or n == 0}
        assert set(map(tuple, head.nonzero().tolist())) <= wanted
    pooled = blocks.flexprefill(q, k, 0.25, gamma=0.5, tau=1.0, min_budget=256)
    mass = blocks._pooled_mass(q, k, 0.25)
    for head, wanted in zip(pooled, mass):
        assert wanted[head].sum() > 0.49 * 10 and head.diagonal().all() and head[:, 0].all()
    assert blocks.flexprefill(q, k, 0.25, min_budget=1280).sum() == 4 * 55


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"coverge": 0.1}, "coverge: must be one of coverage, keep"),
        ({"share": "heads"}, "share: must be one of head, kv_group, layer, is 'heads'"),
        ({"by_layer": {"1-3": {"bands": 4}}}, "bands: must be one of"),
        ({"blocks": {"method": "magic"}}, "blocks: must be one of xattention, .*, is 'magic'"),
        ({"blocks": {"pattern": "xattention", "gamma": 1}}, "blocks.gamma: must be one of threshold, stride"),
    ],
)
def test_what_this_engine_does_not_know_is_refused(setting, message):
    with pytest.raises(EngineError, match=message):
        restated.check(setting)


def test_blocks_mean_what_a_setting_file_says():
    assert blocks.parameters({"pattern": "xattention"}) == {"stride": 16}
    assert blocks.parameters({"pattern": "xattention", "stride": 8}) == {"stride": 8}
    assert blocks.parameters({"method": "xattention"}) == {}
    q, k = torch.randn(2, 700, 8), torch.randn(1, 700, 8)
    named, written = ({key: "xattention", "stride": 8} for key in ("method", "pattern"))
    assert torch.equal(blocks.chosen(q, k, 0.5, named), blocks.chosen(q, k, 0.5, written))


def test_an_even_vote_asks_queries_of_the_whole_prompt():
    torch.manual_seed(7)
    q, k = torch.randn(4, 64, 8), torch.randn(2, 64, 8)
    recent, even = (restated.score(q, k, 0.3, 8, 1, vote) for vote in ("recent", "even"))
    a = (q @ k.repeat_interleave(2, 0).transpose(1, 2) * 0.3).masked_fill(
        torch.ones(64, 64, dtype=torch.bool).triu(1), float("-inf")
    ).softmax(-1)
    torch.testing.assert_close(recent, a[:, 56:, :56].mean(1))
    torch.testing.assert_close(even, a[:, ::9][:, :, :56].mean(1))


@pytest.mark.parametrize(("sink", "band"), [(0, 1), (5, 7), (64, 256), (200, 3), (3, 300)])
@pytest.mark.parametrize("rows", [150, 33])
def test_local_is_the_masked_definition(sink, band, rows):
    torch.manual_seed(7)
    q, k, v = (torch.randn(h, n, 8, dtype=torch.float64) for h, n in ((4, rows), (2, 150), (2, 150)))
    nothing = torch.zeros(1, 0, dtype=torch.long)
    wanted, _ = oracle(q, k, v, 0.3, nothing, sink, band, "local")
    torch.testing.assert_close(restated.local(q, k, v, 0.3, sink, band), wanted)


def test_layers_of_a_setting():
    assert sparse_layers({}, 4) == set()
    assert sparse_layers({"coverage": 0.1}, 4) == {1, 2}
    assert sparse_layers({"layers": "all"}, 4) == {0, 1, 2, 3}
    assert sparse_layers({"layers": [3]}, 4) == {3}
