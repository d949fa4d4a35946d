# SPDX-License-Identifier: MIT
"""What the vLLM backends share, without vLLM: who serves which request, and the reports."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tokensparse.options import Options
from tokensparse.vllm import report
from tokensparse.vllm.steps import Layer, Run, plan


def test_a_step_is_split_by_who_serves_it():
    # Rows 1, 100, 70, 3, 0 of sequences of 50, 100, 300, 3, 9 tokens.
    step = plan([0, 1, 101, 171, 174, 174], [50, 100, 300, 3, 9], Options())
    assert step.ours == (Run(1, 3, slice(1, 171), (0, 100, 170), (0, 100, 400), 100),)
    assert [(run.first, run.past, run.rows) for run in step.stock] == [
        (0, 1, slice(0, 1)),
        (3, 4, slice(171, 174)),
    ]


def test_requests_too_short_to_gain_are_apart():
    # Rows 300, 200, 70, 300 of sequences of 5000, 200, 400, 999 tokens; 8 windows are 256 rows.
    starts, seq_lens = [0, 300, 500, 570, 870], [5000, 200, 400, 999]
    step = plan(starts, seq_lens, Options(window=32, min_keys=1000))
    assert [(run.first, run.past, run.long) for run in step.ours] == [(0, 1, True), (1, 4, False)]
    step = plan(starts, seq_lens, Options(window=32, min_keys=999))
    assert [run.long for run in step.ours] == [True, False, True]
    step = plan(starts, seq_lens, Options(window=32, min_keys=0))
    assert [(run.first, run.past, run.long) for run in step.ours] == [(0, 4, True)]


def test_a_served_run_is_reported_once(monkeypatch):
    monkeypatch.setenv("TOKENSPARSE_KEEP", "0.5")
    monkeypatch.setenv("TOKENSPARSE_MIN_TOKENS", "16")
    layer = Layer(4)
    layer.named("model.layers.2.attn", torch.float32)
    made = torch.Generator().manual_seed(1)
    query = torch.randn(170, 4, 32, generator=made)
    pages = torch.randn(2, 30, 16, 2, 32, generator=made)
    table = torch.arange(30, dtype=torch.int32).view(2, 15)
    run = Run(0, 2, slice(0, 170), (0, 100, 170), (0, 200, 400), 100, long=True)
    output = torch.full_like(query, float("nan"))
    layer.serve(run, query, *pages, table, 32**-0.5, output)
    assert not output.isnan().any()
    [found] = report(reset=True)
    assert (found.layer, found.sparse, found.served, found.query_tokens) == (2, True, 2, 170)
    # The window of 128 covers each query: 100 + 16 tokens at least, and half of 200.
    assert found.kept_share == (116 + 100) / 400
    layer.serve(dataclasses.replace(run, long=False), query, *pages, table, 32**-0.5, output)
    [short] = report(reset=True)
    assert (short.served, short.too_short, short.kept_share) == (2, 2, 1)
    [empty] = report()
    assert empty.served == 0 and empty.kept_share is None
