"""Every Triton kernel goes through Triton's compiler, down to machine code, without a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_kernels__compile(tmp_path: Path) -> None:
    """The interpreter, in which the other tests run them, takes much that the compiler refuses."""
    paths = [path for package in ("models", "engine") for path in (ROOT / package).rglob("fused_*.py")]
    kernels = {name for path in paths for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)}
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "tests/helpers/compile_kernels.py", "75", "89"]  # a GTX 1650, an RTX 4080
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) == kernels
    assert len(kernels) > 10
