# SPDX-License-Identifier: MIT
"""What the vLLM backends share, without vLLM: who serves which request, and the reports."""

import gc
import json
import math
import os
import threading
import time
import types

import pytest

torch = pytest.importorskip("torch")

from tokensparse import InvalidArgument, Selection, Setting, prefill
from tokensparse._pairs import clipped_sum, computed_pairs, dense_pairs
from tokensparse._report import Counts, LayerReport, Report
from tokensparse.vllm import metrics, planned, report, steps, tally, worker_configure
from tokensparse.vllm.steps import Layer, Run, Step, plan, publish_behind, serve_step


def followers():
    return [thread for thread in threading.enumerate() if thread.name == "tokensparse"]


@pytest.fixture(autouse=True)
def nothing_is_left_to_other_tests(monkeypatch):  # whose undoing comes after
    """Nobody's layer is in the next report, and nobody publishes where the next test looks."""
    yield
    for thread in followers():
        thread.join(10)
    assert not followers() and not steps._layers


def test_a_step_is_split_by_who_serves_it():
    # Rows 1, 100, 70, 3, 0 of sequences of 50, 100, 300, 3, 9 tokens.
    step = plan([0, 1, 101, 171, 174, 174], [50, 100, 300, 3, 9], Setting())
    assert step.ours == (Run(1, 3, slice(1, 171), (0, 100, 170), (0, 100, 400), 100),)
    assert [(run.first, run.past, run.rows) for run in step.stock] == [
        (0, 1, slice(0, 1)),
        (3, 4, slice(171, 174)),
    ]


def test_requests_too_short_to_gain_are_apart():
    # Rows 300, 200, 70, 300 of sequences of 5000, 200, 400, 999 tokens.
    starts, seq_lens = [0, 300, 500, 570, 870], [5000, 200, 400, 999]
    step = plan(starts, seq_lens, Setting(min_rows=256, min_keys=1000))
    assert [(run.first, run.past, run.long) for run in step.ours] == [(0, 1, True), (1, 4, False)]
    step = plan(starts, seq_lens, Setting(min_rows=256, min_keys=999))
    assert [run.long for run in step.ours] == [True, False, True]
    step = plan(starts, seq_lens, Setting(min_rows=2, min_keys=0))
    assert [(run.first, run.past, run.long) for run in step.ours] == [(0, 4, True)]


def test_a_long_neighbour_changes_no_coverage():
    setting = Setting(min_rows=2, min_keys=0, long_keys=4000, long_coverage=0.05)
    step = plan([0, 300, 600, 900], [3000, 5000, 4000], setting)
    assert [(run.first, run.past) for run in step.ours] == [(0, 1), (1, 3)]


def test_a_few_rows_are_the_engines():
    # Rows 1, 64 and 100 of sequences of 50, 64 and 100 tokens: 14,096 pairs.
    starts, seq_lens = [0, 1, 65, 165], [50, 64, 100]
    step = plan(starts, seq_lens, Setting(), least_pairs=14097)
    assert (step.ours, step.exact) == ((), ((64, 64), (100, 100)))
    assert [(run.first, run.past) for run in step.stock] == [(0, 3)]
    step = plan(starts, seq_lens, Setting(), least_pairs=14096)
    assert [(run.first, run.past) for run in step.ours] == [(1, 3)] and not step.exact
    # Beside a request that may be sparse, too.
    step = plan([0, 64, 2112], [64, 8192], Setting(), least_pairs=14097)
    assert [(run.first, run.long) for run in step.ours] == [(1, True)] and step.exact == ((64, 64),)


def test_which_calls_are_the_engines_is_asked_once(monkeypatch):
    monkeypatch.delenv("TOKENSPARSE_SERVE_ROWS", raising=False)
    config = types.SimpleNamespace(num_hidden_layers=4)
    assert Layer(config).least_pairs == 224 * 224
    monkeypatch.setenv("TOKENSPARSE_METHOD", "sts")  # decides itself
    assert Layer(config).least_pairs == 0
    monkeypatch.delenv("TOKENSPARSE_METHOD")
    monkeypatch.setenv("TOKENSPARSE_SERVE_ROWS", "64")
    assert Layer(config).least_pairs == 0


def test_exact_prompts_can_be_left_to_the_engine():
    # Rows 1, 300, 200 and 64 of sequences of 50, 5000, 5000 and 64 tokens.
    starts, seq_lens = [0, 1, 301, 501, 565], [50, 5000, 5000, 64]
    setting = Setting(min_rows=256, min_keys=1000)
    step = plan(starts, seq_lens, setting, exact_is_ours=False)
    assert [(run.first, run.past, run.long) for run in step.ours] == [(1, 2, True)]
    assert [(run.first, run.past) for run in step.stock] == [(0, 1), (2, 4)]
    assert step.prompts == ((300, 5000), (200, 5000), (64, 64))
    assert step.exact == ((200, 5000), (64, 64))
    assert plan(starts, seq_lens, setting).exact == ()
    asked = []
    pays = lambda rows, keys: asked.append((rows, keys)) or keys < 5000
    step = plan(starts, seq_lens, setting, exact_is_ours=False, pays=pays)
    assert (step.ours, step.exact) == ((), step.prompts)
    assert asked == [(300, 5000)]  # of what the setting leaves, each once
    assert step.all_counts == Counts.of(step.prompts) == Counts(3, 564, 10064, step.exact_counts.pairs)


def test_prompts_of_the_engine_count_as_kept():
    found = LayerReport(3, named=True)
    found.count_stock(Counts.of([(200, 5000), (64, 64)]), "too short")
    assert (found.served, found.query_tokens, found.kept_share) == (0, 0, 1)
    assert found.stock == {"too short": 1}
    assert Report([found]).pairs_share == 1
    assert Report([found]).never_sparse == {3: "too short"}


def test_blocks_that_nobody_counted_have_no_pairs():
    found = LayerReport(3, named=True, uncounted=True)
    sets = Selection(torch.zeros(1, 2, 6).int(), torch.tensor([6]).int())
    found.count_sparse([(4, 6)], sets, 2)
    assert found.pairs_share is None and Report([found]).pairs_share is None
    assert "blocks not counted" in str(Report([found]))
    found.clear()
    assert not found.uncounted


def test_pairs():
    assert dense_pairs(3, 5) == 3 + 4 + 5
    assert clipped_sum(1, 6, 3) == 2 + 3 + 3 + 3 + 3
    # Queries 2 to 5 of 6 positions, the set keeps 0, 3 and 5: 3 sees two keys, 5 sees three.
    sets = Selection(torch.tensor([[[0, 3, 5, -1, 9, 9]]]).int(), torch.tensor([3]).int())
    assert computed_pairs(sets, [(4, 6)], 0) == 2 + 3
    assert computed_pairs(sets, [(4, 6)], 2) == 2 + 3 + 2 + 2
    full = Selection(torch.zeros(1, 2, 6).int(), torch.tensor([6]).int())
    assert computed_pairs(full, [(4, 6)], 2) == dense_pairs(4, 6)


def test_a_served_run_is_reported_once(monkeypatch, caplog):
    monkeypatch.setenv("TOKENSPARSE_KEEP", "0.5")
    monkeypatch.setenv("TOKENSPARSE_MIN_TOKENS", "16")
    monkeypatch.setenv("TOKENSPARSE_MIN_KEYS", "0")
    monkeypatch.setenv("TOKENSPARSE_MIN_ROWS", "70")
    config = types.SimpleNamespace(num_hidden_layers=4)
    monkeypatch.setattr(steps, "_said", False)
    with caplog.at_level("INFO", "vllm.tokensparse"):
        layer = Layer(config)
        Layer(config)
    [line] = caplog.messages
    assert "is active: sparse attention, keep 0.5" in line and "(2 of 4 layers); prompts of" in line
    layer.named("model.layers.2.attn")
    made = torch.Generator().manual_seed(1)
    query = torch.randn(170, 4, 32, generator=made)
    pages = torch.randn(2, 30, 16, 2, 32, generator=made)
    metadata = types.SimpleNamespace(block_table=torch.arange(30, dtype=torch.int32).view(2, 15))
    run = Run(0, 2, slice(0, 170), (0, 100, 170), (0, 200, 400), 100, long=True)
    output = torch.full_like(query, float("nan"))
    stock = []
    step = Step((run,), (Run(2, 3, slice(170, 171), (0, 1), (0, 9), 1),))
    serve = lambda: serve_step(
        layer, step, query, pages, 32**-0.5, metadata, output, lambda *part: stock.append(part)
    )
    assert serve() == "" and stock == [(0, step.stock[0])]
    assert not output.isnan().any()
    monkeypatch.setattr(steps, "_last_log", -math.inf)
    with caplog.at_level("INFO", "vllm.tokensparse"):
        steps.log_kept_share()
    # Of four layers one had prompts: a share of the others, which may have a window, is not known.
    assert "54.0 % in all 1 that" in caplog.messages[-1]
    [found] = report(reset=True)
    assert (found.layer, found.named, found.served, found.query_tokens) == (2, True, 2, 170)
    # The window of 128 covers each query: 100 + 16 tokens at least, and half of 200.
    assert found.kept_share == (116 + 100) / 400
    monkeypatch.setenv("TOKENSPARSE_MIN_ROWS", "71")
    layer = Layer(config)
    layer.named("model.layers.2.attn")
    serve()
    [short] = report(reset=True)
    assert (short.served, short.sparse_calls, short.kept_share) == (2, 0, 1)
    assert short.exact == {"fewer query rows than min_rows": 2}
    [empty] = report()
    assert empty.served == 0 and empty.kept_share is None


def planned_call(kv_heads=2, **changes):
    """What a planned call on two requests writes and counts, and what `prefill` gives for each."""
    made = torch.Generator().manual_seed(1)
    query = torch.randn(175, 4, 32, generator=made)
    pages = torch.randn(2, 30, 16, kv_heads, 32, generator=made)
    table = torch.arange(30, dtype=torch.int32).view(2, 15)
    setting = Setting(keep=0.5, min_tokens=16, min_keys=0, min_rows=2, window=16, **changes)
    run = Run(0, 2, slice(5, 175), (0, 100, 170), (0, 200, 400), 100, long=True)
    output = torch.full_like(query, float("nan"))
    call = planned.Planned(run, setting, 32**-0.5, query, tuple(pages), table, output)
    with torch.inference_mode():
        tallies = tally.Tallies(torch.device("cpu"))
        slot = tallies.new()
        call(query, tuple(pages), output, tallies.address(slot))
        tallies.follow()
    assert tallies.behind() == tallies.read()
    expected, kept, computed = [], [], []
    for request, (rows, keys) in enumerate(((slice(5, 105), 200), (slice(105, 175), 200))):
        k, v = (x[15 * request : 15 * request + 15].flatten(0, 1)[:keys] for x in pages)
        options = dict(keep=0.5, min_tokens=16, window=16, share=setting.share)
        options.update(dropped=setting.dropped, sink=setting.sink, band=setting.band)
        if setting.blocks:
            blocks = dict(setting.blocks)
            options.update(pattern=blocks.pop("pattern"), pattern_options=blocks)
        out, sets, pairs = prefill(
            query[rows], k, v, return_selection=True, return_pairs=True, **options
        )
        expected.append(out)
        kept.append(sets)
        computed.append(pairs)
    assert output[:5].isnan().all()
    torch.testing.assert_close(output[5:], torch.cat(expected))
    near = setting.sink + setting.band if setting.dropped == "local" else 0
    pairs = sum(
        computed_pairs(sets, [size], near) for sets, size in zip(kept, ((100, 200), (70, 200)))
    )
    assert sum(computed) < pairs if setting.blocks else sum(computed) == pytest.approx(pairs)
    found = LayerReport(1, named=True)
    found.count_tallied(call.counts)
    kept_tokens, pairs_of_heads = tallies.read()[slot]
    found = found.with_tally(kept_tokens, pairs_of_heads / 4)
    assert kept_tokens == sum(int(sets.kept[0]) for sets in kept) < 400
    assert Report([found]).pairs_share == pytest.approx(
        sum(computed) / (dense_pairs(100, 200) + dense_pairs(70, 200))
    )
    assert not call.uncounted  # the host counts what blocks leave of them
    assert (found.served, found.query_tokens, found.key_tokens) == (2, 170, 400)
    tallies.forget()
    assert (tallies.used, tallies.counters.sum()) == (0, 0)


def test_a_planned_call_is_prefill_and_counts_itself():
    planned_call(dropped="zero")
    planned_call(dropped="local", sink=7, band=20)
    planned_call(kv_heads=1, share="layer", dropped="zero")


def test_a_planned_call_reads_by_blocks():
    planned_call(dropped="zero", blocks="pooled,block=16,threshold=0.4")
    pattern = "xattention,block=16,stride=8,threshold=0.4"
    planned_call(dropped="local", band=20, share="layer", blocks=pattern)
    with pytest.raises(InvalidArgument, match="share"):
        planned_call(dropped="zero", blocks="pooled,share=layer")


def test_one_head_moves_by_whole_rows():
    cache = torch.zeros(3, 16, 1, 32).as_strided((3, 16, 1, 32), (512, 32, 1, 1))
    assert planned.whole_strides(cache).stride() == (512, 32, 32, 1)


def test_room_is_made_for_the_longest_prompt():
    query = torch.zeros(512, 4, 32)
    planned.reserve(Setting(keep=0.5), 32**-0.5, query, 2, 8192)
    size = planned._spare[query.device].numel()
    assert size > 2 * 4096 * 4  # two lists, at least
    room = planned.Room(query.device, 0)
    assert room.at_least(size // 2) % 64 == 0
    assert room.workspace.numel() == size and not planned._spare
    assert room.at_least(size - 64) <= room.workspace.data_ptr() + 64
    room.at_least(size)
    assert room.workspace.numel() == size + 64
    assert planned.pays(query.device, 4, 32, 512, 8192)  # on the host what is chosen decides


def test_the_copy_is_published_when_it_has_arrived(monkeypatch, tmp_path):
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    monkeypatch.setattr(steps, "_PUBLISH_EVERY", 0.01)
    monkeypatch.setenv("TOKENSPARSE_KEEP", "0.5")
    layer = Layer(types.SimpleNamespace(num_hidden_layers=4))
    layer.named("model.layers.1.attn").count_tallied(Counts(1, 100, 200, 300))
    layer.tally(torch.device("cpu"), 4)
    layer.tallies.counters[layer.slot, 0] += 50
    publish_behind()
    share = None
    for _ in range(200):
        time.sleep(0.01)
        if files := list(tmp_path.glob("*.json")):
            [share] = [
                value
                for name, labels, value in metrics.samples([json.loads(files[0].read_text())])
                if (name, labels) == ("kept_share", {"layers": "sparse"})
            ]
        if share == 0.25:
            break
        layer.tallies.follow()
        publish_behind()
    assert share == 0.25
    for thread in followers():
        thread.join(10)
    assert not followers()  # nothing changes any more
    monkeypatch.setattr(steps, "_PUBLISH_EVERY", 0.2)
    publish_behind()
    assert len(followers()) == 1


def test_an_engine_that_is_gone_is_in_no_report():
    gone = Layer(types.SimpleNamespace(num_hidden_layers=4))
    gone.named("draft.layers.3.attn").count_exact(Counts.of([(100, 200)]), "")
    layer = Layer(types.SimpleNamespace(num_hidden_layers=4))
    layer.named("model.layers.0.attn").count_exact(Counts.of([(100, 200)]), "")
    assert [found.layer for found in report()] == [0, 3]
    del gone
    gc.collect()
    assert [found.layer for found in report()] == [0]


def test_a_running_engine_takes_another_setting(monkeypatch):
    monkeypatch.setenv("TOKENSPARSE_KEEP", "0.5")
    monkeypatch.setenv("TOKENSPARSE_THREADS", "2")
    layer = Layer(types.SimpleNamespace(num_hidden_layers=4))
    assert layer.named("model.layers.1.attn").named
    monkeypatch.setenv("TOKENSPARSE_SERVE_ROWS", "64")  # so that it is put back
    worker_configure(None, {"TOKENSPARSE_SERVE_ROWS": "128"})
    assert (layer.setting.is_sparse, layer.least) == (False, 128)
    assert "TOKENSPARSE_KEEP" not in os.environ and os.environ["TOKENSPARSE_THREADS"] == "2"
    assert [found.named for found in report() if found.layer == 1] == [False]
    assert not layer.named("model.layers.1.attn").named


def test_a_run_by_blocks_is_prefill_by_them(monkeypatch):
    for name, value in dict(COVERAGE="0", BLOCKS="pooled,block=16,threshold=0.4").items():
        monkeypatch.setenv(f"TOKENSPARSE_{name}", value)
    for name in ("MIN_KEYS", "MIN_ROWS"):
        monkeypatch.setenv(f"TOKENSPARSE_{name}", "2")
    layer = Layer(types.SimpleNamespace(num_hidden_layers=4))
    layer.named("model.layers.2.attn")
    made = torch.Generator().manual_seed(1)
    query = 3 * torch.randn(170, 4, 32, generator=made)
    pages = torch.randn(2, 30, 16, 2, 32, generator=made)
    metadata = types.SimpleNamespace(block_table=torch.arange(30, dtype=torch.int32).view(2, 15))
    run = Run(0, 2, slice(0, 170), (0, 100, 170), (0, 200, 400), 100, long=True)
    output = torch.full_like(query, float("nan"))
    assert serve_step(layer, Step((run,), ()), query, pages, None, metadata, output, None) == ""
    pairs = 0
    for rows, table in ((slice(0, 100), slice(0, 15)), (slice(100, 170), slice(15, 30))):
        k, v = (half[table].flatten(0, 1)[:200] for half in pages)
        expected, counts = prefill(
            query[rows], k, v, coverage=0, return_pairs=True, pattern="pooled",
            pattern_options=dict(block=16, threshold=0.4),
        )  # fmt: skip
        assert torch.equal(output[rows], expected)
        pairs += counts
    [found] = report(reset=True)
    assert (found.sparse_calls, found.kept_share) == (2, 1)
    assert found.pairs_share == pairs / (dense_pairs(100, 200) + dense_pairs(70, 200)) < 1


def test_metrics_are_what_the_processes_left(monkeypatch, tmp_path):
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    sparse, exact = LayerReport(1, named=True), LayerReport(0)
    sparse.count_exact(Counts.of([(100, 200)]), "fewer keys than min_keys")
    exact.count_exact(Counts.of([(100, 200)]), "")
    exact.stock["sliding window"] += 3
    metrics.publish(Report([sparse, exact]))
    [file] = tmp_path.iterdir()
    left = json.loads(file.read_text())
    left["kept_tokens"]["sparse"] = 50
    found = {(name, *labels.values()): value for name, labels, value in metrics.samples([left] * 2)}
    assert found["query_rows", "sparse"] == 200 and found["key_tokens", "exact"] == 400
    assert found["kept_share", "sparse"] == 0.25 and found["kept_share", "all"] == 500 / 800
    assert found["exact_calls", "fewer keys than min_keys"] == 2
    assert found["stock_calls", "sliding window"] == 6
    assert not list(metrics.samples([]))
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path / "missing"))
    metrics.publish(Report([sparse]))  # an engine does not stop for it


def test_the_server_shows_them(monkeypatch, tmp_path):
    prometheus = pytest.importorskip("prometheus_client")
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    layer = LayerReport(1, named=True)
    layer.count_exact(Counts.of([(100, 200)]), "fewer keys than min_keys")
    metrics.publish(Report([layer]))
    registry = prometheus.CollectorRegistry()
    registry.register(metrics.Collector(tmp_path))
    text = prometheus.generate_latest(registry).decode()
    assert 'tokensparse_query_rows_total{layers="sparse"} 100.0' in text
    assert 'tokensparse_kept_share{layers="all"} 1.0' in text
    assert 'tokensparse_exact_calls_total{reason="fewer keys than min_keys"} 1.0' in text


def test_a_setting_that_is_not_for_the_model(monkeypatch):
    monkeypatch.setenv("TOKENSPARSE_LAYERS", "9")
    monkeypatch.setattr("tokensparse.vllm.steps._said", False)
    with pytest.raises(ValueError, match="layers: must be below 4"):
        Layer(types.SimpleNamespace(num_hidden_layers=4))
