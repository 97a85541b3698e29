"""What the engine costs over a bare PyTorch loop with the same network, loss, optimizer and average.

python benchmarks/overhead.py --out benchmarks/results/overhead_cpu.json

Lightning's Trainer runs as in `engine.fit`. Its loader hands out one window after the other and, before each, times a
step of the bare loop and one of `TrainingStep` alone. So the three alternate in one process, and what counts as the
engine's time is all that Lightning, our module and the callbacks do between two windows. Processor seconds of one
thread, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import torch
from common import NUM_CLASSES, BareLoop, compare, random_window, training_step, write

from data.batch import Batch
from engine.module import Detector
from engine.progress import TrainingProgress
from engine.run import RunConfig, default_callbacks, default_loggers
from engine.throughput import Throughput

WARM_UP = 3


class AlternatingLoader:
    """The same window again and again; what lies between two requests is the engine's step."""

    def __init__(self, window: Batch, others: dict[str, Callable[[Batch], object]], rounds: int) -> None:
        self.window, self.others, self.rounds = window, others, rounds
        self.seconds: dict[str, list[float]] = {"engine": []} | {name: [] for name in others}

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.rounds):
            for name, function in self.others.items():
                start = time.process_time()
                function(self.window)
                self.seconds[name].append(time.process_time() - start)
            start = time.process_time()
            yield self.window
            self.seconds["engine"].append(time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = [f"class{i}" for i in range(NUM_CLASSES)]
    num_images, size = arguments.images, arguments.image_size
    module = Detector(names, num_images, num_images, size, network="yolo11n", recompute="none")
    step = training_step(copy.deepcopy(module.network), num_images, num_images)
    others = {"bare": BareLoop(copy.deepcopy(module.network), arguments.images), "step": step.run}
    loader = AlternatingLoader(random_window(arguments.images, arguments.image_size), others, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        throughput = Throughput()
        callbacks = [throughput, TrainingProgress(throughput)]
        callbacks += default_callbacks(Path(folder), RunConfig(patience=0))[1:]  # no validation: no best checkpoint
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, callbacks=callbacks, logger=default_loggers(Path(folder)),
            log_every_n_steps=10, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, loader)
    seconds = {name: times[WARM_UP : arguments.rounds - 1] for name, times in loader.seconds.items()}
    what = f"yolo11n, {arguments.images} x {arguments.image_size}, fp32, one CPU thread: an optimizer step"
    write(arguments.out, what, {"rounds": len(seconds["bare"])} | compare(seconds, "bare"))


if __name__ == "__main__":
    main()
