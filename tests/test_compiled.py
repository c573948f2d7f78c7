"""Compiled kernels: their laws run by themselves, since torch cannot compile what the tests' shape checks wrap."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omni import products
from omni.compiled import COMPILERS


@pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS)), reason="kernels are compiled by a C++ compiler, and none is installed"
)
def test_compiled_steps_are_the_plain_ones() -> None:
    laws = Path(__file__).with_name("compiled_laws.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", str(laws)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "passed" in ran.stdout


@pytest.mark.parametrize(
    ("capability", "compiler", "told"), [("AVX2", "true", 2), ("AVX2", "false", 0), ("AVX512", "true", 0)]
)
def test_a_compiler_is_told_what_it_knows(
    capability: str, compiler: str, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "get_cpp_compiler", lambda: compiler)
    assert len(products._wide_moves()) == told
