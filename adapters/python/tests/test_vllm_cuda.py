# SPDX-License-Identifier: MIT
"""The CUSTOM backend's builder and layer on every device this machine has."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import torch
import vllm_backend

import tokensparse
from tokensparse.vllm import steps

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.mark.parametrize("device", DEVICES)
def test_backend(tmp_path, device):
    vllm_backend.check(tmp_path, device)


def test_an_exact_step_costs_a_layer_one_call(tmp_path):
    backend = vllm_backend.Backend(vllm_backend.engine_settings(tmp_path), "cpu")
    requests = [(300, 300), (65, 65), (1, 700)]
    backend.step(requests)
    backend.report()
    called, ours = [], str(Path(tokensparse.__file__).parent)

    def watch(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            called.append(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        for _ in range(3):
            backend.step(requests)
    finally:
        sys.setprofile(None)
    assert called.count("forward") == called.count("build") == 3
    layers = {"named", "count_stock", "_sparse_step", "step_of", "may_serve"}
    assert not layers & set(called), called
    assert len(called) < 3 * 25, called  # whatever is left is the builder's, once a step
    assert backend.report() == (0, 3, 1)


def test_an_exact_step_is_told_before_another_comes(tmp_path):
    backend = vllm_backend.Backend(vllm_backend.engine_settings(tmp_path), "cpu")
    for replayed in (False, True):
        backend.step([(300, 300)], replayed=replayed)
        [layer] = (r for r in steps.collect(reset=False, wait=False) if r.layer == 1)  # as metrics do
        assert layer.stock == {"exact layer": 1 + replayed}
    common = vllm_backend.CommonAttentionMetadata
    made = backend.builders[vllm_backend.LAYER]
    starts = torch.tensor([0, 300], dtype=torch.int32, device="cpu")
    capture = common(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=starts[1:],
        num_reqs=1,
        num_actual_tokens=300,
        max_query_len=300,
        max_seq_len=300,
        block_table_tensor=torch.zeros(1, 20, dtype=torch.int32),
        slot_mapping=torch.arange(300),
        seq_lens_cpu_upper_bound=starts[1:],
    )
    made.build_for_cudagraph_capture(capture)  # nobody's prompt
    assert backend.report() == (0, 2, 1)
