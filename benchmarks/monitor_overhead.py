"""Time that the memory monitor adds to a training step: medians with and without it, in turns in one process.

On a CPU the monitor samples the process. With ``--device cuda`` it samples torch's counters and the driver.

python benchmarks/monitor_overhead.py --out benchmarks/results/monitor_overhead.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from common import quartiles, write
from lightning.pytorch.loggers import TensorBoardLogger

from engine.loop.monitor import MemoryMonitor
from engine.memory.probe import open_probe
from models.detection.loss import DetectionLoss, LossGains
from models.network import build_network, head_strides

ROUNDS, STEPS_PER_ROUND, LOG_EVERY_STEPS = 9, 10, 10


def main() -> None:
    """Time training steps of a small network, for which the monitor's share is largest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    step = training_step(device, options.image_size)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(step, device, Path(folder))
    results |= {"rounds": ROUNDS, "steps_per_round": STEPS_PER_ROUND}
    write(options.out, f"yolo11n, 4 x {options.image_size}, fp32, {device}: forward, loss, backward", results)


def training_step(device: torch.device, image_size: int) -> Callable[[], None]:
    """A function that runs one step and waits for the device."""
    torch.manual_seed(0)
    network = build_network("yolo11n", 25).to(device)
    loss = DetectionLoss(head_strides(network))
    images = torch.rand(4, 3, image_size, image_size, device=device)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 32.0]], device=device).repeat(20, 1)
    image_index = torch.arange(20, device=device) // 5

    def step() -> None:
        sums = loss(network(images), boxes, image_index, image_index)
        LossGains().apply(sums).sum().backward()
        network.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure(step: Callable[[], None], device: torch.device, folder: Path) -> dict[str, object]:
    """Time rounds of steps with and without the monitor in turn."""
    trainer = SimpleNamespace(
        is_global_zero=True,
        global_step=0,
        log_every_n_steps=LOG_EVERY_STEPS,
        loggers=[TensorBoardLogger(folder, name="", version="")],
        default_root_dir=folder,
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    module = SimpleNamespace(device=device, micro_batch_size=4)
    monitor = MemoryMonitor()
    monitor.setup(trainer, module, "fit")
    monitor.on_train_start(trainer, module)
    steps: dict[bool, list[float]] = {True: [], False: []}
    hooks: list[float] = []
    processor: dict[str, list[float]] = {"step": [], "hooks": []}
    for round_number in range(ROUNDS + 1):  # the first warms up
        for is_watched in (True, False) if round_number % 2 else (False, True):
            begun = time.perf_counter()
            for _ in range(STEPS_PER_ROUND):
                monitor.on_train_batch_start(trainer, module, None, 0)
                processor_begun = time.process_time()
                step()
                processor["step"].append(time.process_time() - processor_begun)
                if is_watched:
                    trainer.global_step += 1
                    hook_begun, processor_begun = time.perf_counter(), time.process_time()
                    monitor.on_train_batch_end(trainer, module, None, [None] * 4, 0)
                    hooks.append(time.perf_counter() - hook_begun)
                    processor["hooks"].append(time.process_time() - processor_begun)
            steps[is_watched].append((time.perf_counter() - begun) / STEPS_PER_ROUND)
    return summarize(steps, hooks[STEPS_PER_ROUND:], processor, time_samples(device))


def time_samples(device: torch.device) -> list[float]:
    """Seconds of single samples of memory."""
    probe = open_probe(device)
    samples = []
    for _ in range(200):
        begun = time.perf_counter()
        probe()
        samples.append(time.perf_counter() - begun)
    return samples


def summarize(
    steps: dict[bool, list[float]], hooks: list[float], processor: dict[str, list[float]], samples: list[float]
) -> dict[str, object]:
    """The figures of all rounds but the first; processor time excludes other programs."""
    pairs = zip(steps[True][1:], steps[False][1:], strict=True)
    processor_step = statistics.median(processor["step"][2 * STEPS_PER_ROUND :])
    # The mean, for TensorBoard's share comes every few steps only.
    processor_hook = statistics.mean(processor["hooks"][STEPS_PER_ROUND:])
    return {
        "median_step_seconds": statistics.median(steps[False][1:]),
        "median_step_seconds_with_monitor": statistics.median(steps[True][1:]),
        "median_ratio": statistics.median(watched / alone for watched, alone in pairs),
        "quartile_step_seconds": quartiles(steps[False][1:]),
        "median_hook_seconds": statistics.median(hooks),
        "median_sample_seconds": statistics.median(samples),
        "median_step_processor_seconds": processor_step,
        "mean_hook_processor_seconds": processor_hook,
        "hook_share_of_processor_time": processor_hook / processor_step,
    }


if __name__ == "__main__":
    main()
