"""Compiled kernels: their laws run by themselves, since torch cannot compile what the tests' shape checks wrap."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
