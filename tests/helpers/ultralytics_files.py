"""Files as the real Ultralytics package writes them, made in its own process; and what it makes of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = ["resistor", "capacitor", "chip"]

WRITE_FILES = """
import copy, sys, torch
from pathlib import Path
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import strip_optimizer
folder, names = Path(sys.argv[1]), dict(enumerate(sys.argv[2:]))
torch.manual_seed(0)
model = DetectionModel("yolo11n.yaml", nc=len(names), verbose=False)
model.names, model.task = names, "detect"
model.args = get_cfg(overrides={"imgsz": 96, "task": "detect", "model": "yolo11n.pt"})  # the trainer's object
ema = copy.deepcopy(model)
for parameter in ema.parameters():
    parameter.data += 0.25
train_args = {"imgsz": 96, "task": "detect", "model": "yolo11n.pt", "data": "boards.yaml"}
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
sum(parameter.sum() for parameter in model.parameters()).backward()
optimizer.step()
checkpoint = {"epoch": 3, "best_fitness": 0.5, "model": None, "ema": copy.deepcopy(ema).half(), "updates": 9,
    "optimizer": optimizer.state_dict(), "scaler": {"scale": 65536.0}, "train_args": train_args,
    "train_metrics": {"fitness": 0.5}, "train_results": {"epoch": [1]}, "date": "today", "version": "8.4"}
torch.save(checkpoint, folder / "trainer.pt")
torch.save(checkpoint | {"model": model.half()}, folder / "both.pt")
torch.save(checkpoint, folder / "stripped.pt")
strip_optimizer(folder / "stripped.pt")
torch.save(ema, folder / "bare.pt")
facade = YOLO("yolo11n.yaml")
facade.model = ema
facade.save(folder / "facade.pt")
torch.save(ema.half().float().state_dict(), folder / "expected.pt")
torch.save(model.float().state_dict(), folder / "expected-model.pt")
"""


def run_ultralytics(script: str, folder: Path, *args: str) -> Any:
    """Run a script of the real package, offline, with its settings in ``folder``; its last line is JSON or None."""
    environment = {
        **os.environ,
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_VERBOSE": "false",
        "YOLO_CONFIG_DIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", script, *args]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    lines = result.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1][:1] in "{[" else None


def write_ultralytics_files(folder: Path) -> Path:
    """``trainer``, ``both``, ``stripped``, ``bare`` and ``facade.pt``, with the averaged weights of ``expected.pt``."""
    run_ultralytics(WRITE_FILES, folder, str(folder), *NAMES)
    return folder
