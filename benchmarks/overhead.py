"""What the engine costs over a bare PyTorch loop with the same network, loss, optimizer and average.

    python benchmarks/overhead.py --out benchmarks/results/overhead_cpu.json
    python benchmarks/overhead.py --network yolo11l --image-size 640 --images 16 --precision fp16 --out ...

Lightning's Trainer runs as in `engine.fit`. Its loader hands out one window after the other and, before each, times a
step of the bare loop and one of `TrainingStep` alone. So the three alternate in one process, and what counts as the
engine's time is all that Lightning, our module and the callbacks do between two windows.

On a CPU it is processor seconds of one thread, so that other work on the machine counts little. On a GPU, which is
taken where there is one, it is seconds of the wall clock, with the device waited for after every step: so the host's
work between two steps is seen in full, though in training it is done beside the device's. There the bare loop launches
every kernel from Python, under autocast, while ours has its micro-steps captured: what the engine adds is its
difference to `step`.
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

from data.loading.batch import Batch
from engine.loop.module import Detector
from engine.loop.progress import TrainingProgress
from engine.loop.throughput import Throughput
from engine.run.folder import RunConfig, default_callbacks, default_loggers
from engine.training.config import ModelConfig

WARM_UP = 3


class AlternatingLoader:
    """The same window again and again; what lies between two requests is the engine's step."""

    def __init__(
        self, window: Batch, others: dict[str, Callable[[Batch], object]], rounds: int, clock: Callable[[], float]
    ) -> None:
        self.window, self.others, self.rounds, self.clock = window, others, rounds, clock
        self.seconds: dict[str, list[float]] = {"engine": []} | {name: [] for name in others}

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.rounds):
            for name, function in self.others.items():
                start = self.clock()
                function(self.window)
                self.seconds[name].append(self.clock() - start)
            start = self.clock()
            yield self.window
            self.seconds["engine"].append(self.clock() - start)


def synchronized_clock() -> float:
    """Seconds of the wall clock once the GPU has done all it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def train(module: Detector, loader: AlternatingLoader) -> None:
    """One epoch of the loader, with what `engine.fit` adds to a Trainer, but no validation."""
    with tempfile.TemporaryDirectory() as folder:
        throughput = Throughput()
        callbacks = [throughput, TrainingProgress(throughput)]
        callbacks += default_callbacks(Path(folder), RunConfig(patience=0))[1:]  # no validation: no best checkpoint
        trainer = L.Trainer(
            accelerator="auto", devices=1, max_epochs=1, callbacks=callbacks, logger=default_loggers(Path(folder)),
            log_every_n_steps=10, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--network", default="yolo11n")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--recompute", default="none")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = [f"class{i}" for i in range(NUM_CLASSES)]
    num_images, size, precision = arguments.images, arguments.image_size, arguments.precision
    config = ModelConfig(arguments.network, precision=precision, recompute=arguments.recompute)
    module = Detector(config, names, num_images, num_images, size)
    window = random_window(num_images, size)
    networks = [copy.deepcopy(module.network).to("cuda" if on_gpu else "cpu") for _ in range(2)]
    step = training_step(networks[1], num_images, num_images, precision, arguments.recompute)
    others = {"bare": BareLoop(networks[0], num_images, precision), "step": step.run}
    clock = synchronized_clock if on_gpu else time.process_time
    loader = AlternatingLoader(window.pin_memory() if on_gpu else window, others, arguments.rounds, clock)
    train(module, loader)
    seconds = {name: times[WARM_UP : arguments.rounds - 1] for name, times in loader.seconds.items()}
    where = "wall clock, the device waited for" if on_gpu else "one CPU thread"
    what = f"{arguments.network}, {num_images} x {size}, {precision}, {where}: an optimizer step"
    write(arguments.out, what, {"rounds": len(seconds["bare"])} | compare(seconds, "bare"))


if __name__ == "__main__":
    main()
