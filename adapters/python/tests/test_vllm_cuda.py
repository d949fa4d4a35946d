# SPDX-License-Identifier: MIT
"""The CUSTOM backend's builder and layer on every device this machine has."""

import pytest

pytest.importorskip("vllm")

import torch
import vllm_backend

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.mark.parametrize("device", DEVICES)
def test_backend(tmp_path, device):
    vllm_backend.check(tmp_path, device)
