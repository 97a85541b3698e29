"""A short training with augmentation learns as fast as Ultralytics' trainer did: the stored reference of many seeds.

`test_same_course.py` holds the step to many digits, without augmentation. Here everything takes part in which chance
plays a role, so losses can be held to some 8 per cent only: it finds what breaks training, not what harms it a little.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "benchmarks" / "results" / "fidelity_short_cpu_2026-11-29.json"
NUM_SEEDS = 3
EPOCHS = slice(2, 6)
"""Where losses fall the fastest and scatter the least: before, nothing is learned; later, few images are overfitted."""
STANDARD_ERRORS = 4.0


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute, but it starts several processes, and a machine may be busy
@pytest.mark.parity
def test_losses__fall_as_fast_as_in_the_reference(tmp_path: Path) -> None:
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    theirs, ours_then = (losses_by_seed(reference["runs"], trainer) for trainer in ("ultralytics", "yolofit"))
    ours = losses_by_seed(train_again(reference["command"], tmp_path / "out.json"), "yolofit")
    assert len(ours) == NUM_SEEDS and len(theirs) >= 10
    for loss in ("box_loss", "cls_loss", "dfl_loss"):
        scatter = statistics.stdev(ours_then[seed][loss] / theirs[seed][loss] - 1 for seed in theirs)
        gap = statistics.fmean(ours[seed][loss] / theirs[seed][loss] - 1 for seed in ours)
        assert abs(gap) < STANDARD_ERRORS * scatter / NUM_SEEDS**0.5, f"{loss}: {gap:+.1%} of the reference"


def losses_by_seed(runs: list[dict[str, Any]], trainer: str) -> dict[int, dict[str, float]]:
    """Mean training losses over `EPOCHS` of every seed."""
    return {
        run["seed"]: {
            name: statistics.fmean(curve[EPOCHS]) for name, curve in run["curves"].items() if "val" not in name
        }
        for run in runs
        if run["trainer"] == trainer
    }


def train_again(command: str, out: Path) -> list[dict[str, Any]]:
    """The runs of yolofit of some seeds, by the command that made the reference."""
    options = shlex.split(command)[2:]
    changes = ["--seeds", str(NUM_SEEDS), "--arms", "yolofit", "--out", str(out)]
    program = [sys.executable, "benchmarks/fidelity.py", *options, *changes]
    subprocess.run(program, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=580)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert not result["failed"]
    return result["runs"]
