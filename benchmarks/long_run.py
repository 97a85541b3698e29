"""Resident memory and open files of the training process and its workers over 2,000 steps with validation.

    python benchmarks/long_run.py --out benchmarks/results/long_run_cpu_DATE.json

The program runs ``engine.fit`` with yolo11n on drawn boards at 64 pixels, two images a step and 50 steps an epoch, with
a validation and a checkpoint after each epoch. It takes a sample after every validation. The first quarter of the
samples fills the caches. Growth is the slope of a line through the rest.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import psutil
import torch
from common import write

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.command_line import cli
from engine.fit import main as fit
from engine.memory.units import MIB

STEPS_PER_EPOCH = 50
BATCH_SIZE = 2


class Sampler(L.Callback):
    """Notes memory and open files after each validation."""

    def __init__(self) -> None:
        self.samples: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, *args: object) -> None:
        """The workers of training and validation are there, and nothing is in flight."""
        process = psutil.Process()
        self.samples.append(
            {
                "step": trainer.global_step,
                "rss_mib": round(process.memory_info().rss / MIB, 1),
                "open_files": process.num_fds(),
                "threads": process.num_threads(),
                "workers": len(process.children()),
                "workers_rss_mib": round(sum(worker_rss_bytes(process)) / MIB, 1),
                "workers_open_files": sum(worker.num_fds() for worker in process.children()),
            }
        )


def worker_rss_bytes(process: psutil.Process) -> Iterator[int]:
    for worker in process.children():
        yield worker.memory_info().rss


def growth(samples: list[dict[str, float]], key: str) -> dict[str, float]:
    """First, last and slope per 1,000 steps of what was measured after the first quarter."""
    kept = samples[len(samples) // 4 :]
    steps, values = (np.array([sample[name] for sample in kept], float) for name in ("step", key))
    slope = np.polyfit(steps, values, 1)[0] * 1000
    return {"first": values[0], "last": values[-1], "max": values.max(), "per_1000_steps": round(float(slope), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    num_steps = options.steps
    torch.set_num_threads(1)
    sampler, callbacks = Sampler(), cli.default_callbacks
    cli.default_callbacks = lambda *args: [*callbacks(*args), sampler]
    with tempfile.TemporaryDirectory() as name:
        images = SyntheticConfig(num_train=STEPS_PER_EPOCH * BATCH_SIZE, num_val=8, image_size=96)
        data = generate_pcb_dataset(Path(name) / "boards", images)
        fit(
            [
                "--config=configs/quickstart.yaml",
                f"--data.root={data}",
                f"--run.folder={name}/run",
                "--data.image_size=64",
                f"--data.batch_size={BATCH_SIZE}",
                f"--data.micro_batch_size={BATCH_SIZE}",
                "--data.workers=1",
                f"--trainer.max_epochs={num_steps // STEPS_PER_EPOCH}",
            ]
        )
    keys = ("rss_mib", "open_files", "threads", "workers_rss_mib", "workers_open_files")
    summary = {key: growth(sampler.samples, key) for key in keys}
    what = f"growth of a run of {num_steps} steps with a validation every {STEPS_PER_EPOCH}"
    write(options.out, what, summary | {"samples": sampler.samples})


if __name__ == "__main__":
    main()
