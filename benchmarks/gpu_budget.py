"""Real trainings of the popular 16 GB table: YOLO11l, micro-batches of 16 and 32 at 640 and 800, 32 images a step.

    PYTHONPATH=. python benchmarks/gpu_budget.py --out benchmarks/results/gpu_budget_2026-11-26.json

Each row is a run of ``python -m engine.fit`` on drawn boards: two epochs with validation, automatic recompute and
``--memory.budget 16GiB``. In the last row the plan chooses the micro-batch, too. The allocator is capped at the budget,
so a run that needs more memory fails. The rows run at the same time. The result has the memory of each process, as the
allocator and the driver report it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import write

from engine.report.memory_log import PEAK, RESERVED, read_memory_log

BUDGET = "16GiB"
ROWS = [(16, 640), (32, 640), (16, 800), (32, 800), ("auto", 640)]


def train(micro_batch: int | str, image_size: int, folder: Path, network: str, batch_size: int) -> dict[str, Any]:
    """Run one training; return its plan and its memory."""
    run = folder / f"{micro_batch}x{image_size}"
    arguments = {
        "run.folder": run, "model.network": network, "model.precision": "fp16", "model.recompute": "auto",
        "data.root": "synthetic", "data.synthetic.num_train": 4 * batch_size, "data.synthetic.num_val": 16,
        "data.synthetic.image_size": image_size, "data.image_size": image_size, "data.batch_size": batch_size,
        "data.micro_batch_size": micro_batch, "data.workers": 2, "memory.budget": BUDGET, "trainer.max_epochs": 2,
        "trainer.accelerator": "gpu",
    }  # fmt: skip
    command = [sys.executable, "-m", "engine.fit", *(f"--{key}={value}" for key, value in arguments.items())]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / f"cache{image_size}{micro_batch}")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    row: dict[str, Any] = {"micro_batch": micro_batch, "image_size": image_size, "exit_status": done.returncode}
    if done.returncode:
        return row | {"error": (done.stdout + done.stderr)[-2000:]}
    plan, columns = json.loads((run / "plan.json").read_text()), read_memory_log(run / "memory.csv")
    output = done.stdout + done.stderr
    return row | {
        "planned": {name: plan[name] for name in ("micro_batch", "recompute", "recompute_layers", "peak_bytes")},
        "peak_allocated_mib": max(columns[PEAK]),
        "peak_reserved_mib": max(columns[RESERVED]),
        "memory_line": next((line for line in output.splitlines() if line.startswith("memory:")), ""),
        "recoveries": len(re.findall("becomes micro-batch", output)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--network", default="yolo11l")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(ROWS)) as pool:
        runs = [pool.submit(train, *row, Path(folder), arguments.network, arguments.batch_size) for row in ROWS]
        rows = [run.result() for run in runs]
    for row in rows:
        print(row, flush=True)
    what = f"{arguments.network}: engine.fit within {BUDGET}, {arguments.batch_size} images an optimizer step"
    write(arguments.out, what, {"budget": BUDGET, "rows": rows}, quiet=True)


if __name__ == "__main__":
    main()
