# SPDX-License-Identifier: MIT
"""What the package says when an optional engine is missing or too old."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest


def run(code, **environment):
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**__import__("os").environ, **environment},
    )
    return found.returncode, (found.stdout + found.stderr).strip()


@pytest.mark.parametrize("module, needs", [("torch", "torch"), ("transformers", "torch")])
def test_engine_missing(module, needs):
    if importlib.util.find_spec(needs):
        pytest.skip(f"{needs} is installed")
    code, text = run(f"import tokensparse.{module}")
    assert code == 1
    assert f"tokensparse.{module} needs {needs} " in text and "pip install" in text


@pytest.mark.parametrize("module, needs", [("torch", "torch"), ("transformers", "torch")])
def test_engine_too_old(tmp_path, module, needs):
    (tmp_path / f"{needs}.py").write_text("__version__ = '1.0.1+cpu'\n")
    code, text = run(f"import tokensparse.{module}", PYTHONPATH=str(tmp_path))
    assert code == 1
    assert f"tokensparse.{module} needs {needs} " in text and "found 1.0.1+cpu" in text


def test_library_missing():
    code, text = run("import tokensparse", TOKENSPARSE_LIBRARY="/nowhere/libtokensparse.so")
    assert code == 1
    assert "cannot load /nowhere/libtokensparse.so" in text and "reinstall the wheel" in text


def test_vllm_plugin_stays_quiet_without_vllm():
    if importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed")
    code, text = run("import tokensparse.vllm; tokensparse.vllm.register()")
    assert code == 1
    assert "tokensparse.vllm needs vllm 0.24 or newer, which is not installed" in text
