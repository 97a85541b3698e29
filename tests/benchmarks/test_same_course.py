"""Without chance, yolofit and Ultralytics' trainer take the same course: the whole of both, from weights to losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUM_EPOCHS = 4  # of one step each: the warm-up and the first after it; then rounding, tenfold in every step, shows


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute, but it starts three processes, and a machine may be busy
@pytest.mark.parity
def test_losses__are_those_of_ultralytics_trainer(tmp_path: Path) -> None:
    options = ["--plain", "--images", "16", "--validation-images", "8", "--batch", "16", "--epochs", "5"]
    options += ["--validate-every", "1", "--image-size", "96", "--seeds", "1"]
    command = [sys.executable, "benchmarks/fidelity.py", *options, "--out", str(tmp_path / "out.json")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=580)
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert not result["failed"]
    theirs, ours = (run["curves"] for run in result["runs"])
    # Not val_cls_loss: their validation pads images to another size, whose further anchors cost something.
    for name in ("box_loss", "cls_loss", "dfl_loss", "val_box_loss", "val_dfl_loss"):
        # Six digits agree at first; the tolerance is for what AdamW makes of the last ones in four steps.
        assert ours[name][:NUM_EPOCHS] == pytest.approx(theirs[name][:NUM_EPOCHS], rel=5e-4), name
