"""The plan against a real training step, cell by cell.

    python benchmarks/plan_error.py --out benchmarks/results/plan_error.json
    python benchmarks/plan_error.py --gpu benchmarks/results/gpu_steps_DATE.json --out ...plan_error_gpu.json

1. `simulated`: the step on the meta device against the storages of a real step of yolo11n on the CPU.
2. `between`: the plan's interpolation between simulations against a simulation of the same micro-batch.
3. `allocated` and `gpu`, with `--gpu`: the plan against the bytes that torch allocated and against the bytes that the
   driver reported, for every cell of `gpu_steps.py`. The constants of `engine.memory.overhead` were derived from these
   results, so other cards may differ more.

The first two cover tensors only, without the other memory of a GPU (`engine.memory.overhead`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import torch
from common import BOXES_PER_IMAGE, NUM_CLASSES, cpu_peak_bytes, random_window, step_tensors, training_step, write

from data.loading.batch import Batch
from engine.memory.overhead import (
    CUBLAS_WORKSPACE_BYTES,
    HOPPER_WORKSPACE_BYTES,
    MODULES_BYTES,
    beside_tensors,
)
from engine.planning.predict import described, predict
from engine.planning.simulation import StepSpec, simulate_step
from engine.training.config import ModelConfig
from models.network import build_network
from models.recompute.levels import Level

IMAGE_SIZES, MICRO_BATCHES, ACCUMULATES = (96, 160, 256), (1, 3, 8), (1, 2)
BESIDE_TENSORS = tuple(beside_tensors(0, 0, 0))
LARGEST, BETWEEN = 32, (3, 6, 24)


def real_bytes(micro_batch: int, image_size: int, level: Level, accumulate: int) -> int:
    """Peak of a step on the CPU, without the window: it stays on the host when there is a GPU."""
    step = training_step(build_network("yolo11n", NUM_CLASSES), micro_batch * accumulate, micro_batch, "fp32", level)
    window = random_window(micro_batch * accumulate, image_size)
    # On a CPU a micro-batch is there already; on a GPU it is copied.
    with mock.patch.object(Batch, "to", lambda self, device, non_blocking=False: self._map(torch.clone)):
        step.run(window)  # the optimizer's state is made
        return cpu_peak_bytes(lambda: step.run(window), step_tensors(step))


def simulated() -> Iterator[dict[str, Any]]:
    """Rows that compare the simulated step with a real step on the CPU."""
    for level, size, micro_batch, accumulate in itertools.product(
        get_args(Level), IMAGE_SIZES, MICRO_BATCHES, ACCUMULATES
    ):
        spec = StepSpec(ModelConfig("yolo11n", cuda_graphs=False), NUM_CLASSES, size, BOXES_PER_IMAGE)
        components = simulate_step(spec, micro_batch, level, accumulates=accumulate > 1)
        cell = {"recompute": level, "image_size": size, "micro_batch": micro_batch, "accumulate": accumulate}
        yield row(cell, sum(components.values()), real_bytes(micro_batch, size, level, accumulate))


def between() -> Iterator[dict[str, Any]]:
    """Rows that compare the plan's interpolation with a simulation."""
    for network, level, micro_batch in itertools.product(("yolo11n", "yolo11l"), get_args(Level), BETWEEN):
        spec = StepSpec(ModelConfig(network, precision="fp16"))
        found = predict(spec, LARGEST, level, micro_batch, accumulates=True)
        measured = sum(simulate_step(spec, micro_batch, level, accumulates=True).values())
        predicted = sum(found.values()) - sum(found[name] for name in BESIDE_TENSORS)
        yield row({"network": network, "recompute": level, "micro_batch": micro_batch}, predicted, measured)


def on_gpu(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows that compare the plan with the allocated bytes and with the driver's bytes, for every cell of yolofit."""
    results = json.loads(file.read_text())
    context_bytes = results["used_bytes_of_an_empty_process"] + MODULES_BYTES
    is_hopper = re.search("H[12]00", results["machine"]["gpu"])
    machine = HOPPER_WORKSPACE_BYTES if is_hopper else CUBLAS_WORKSPACE_BYTES, context_bytes
    rows: dict[str, list[dict[str, Any]]] = {"allocated": [], "gpu": []}
    for found in results["rows"]:
        if found["rival"] in get_args(Level):
            size, micro_batch, level = found["image_size"], found["micro_batch"], found["rival"]
            model = ModelConfig("yolo11l", precision=found["precision"])
            spec = StepSpec(model, NUM_CLASSES, size, found["boxes_per_image"])
            with mock.patch("engine.planning.predict.of_this_machine", lambda: machine):
                plan = described(spec, micro_batch, micro_batch, level, {})
            cell = {"image_size": size, "micro_batch": micro_batch, "precision": found["precision"], "recompute": level}
            allocated = plan.peak_bytes - plan.components["allocator_gaps"] - plan.components["cuda_context"]
            rows["allocated"].append(row(cell, allocated, found["peak_allocated_bytes"]))
            rows["gpu"].append(row(cell, plan.peak_bytes, found["used_bytes"]))
    return rows


def row(cell: dict[str, Any], predicted: int, measured: int) -> dict[str, Any]:
    """A cell with its error, relative to the measured bytes."""
    print(cell, f"{predicted / measured - 1:+.3%}", flush=True)
    return cell | {
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "relative_error": predicted / measured - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--gpu", type=Path, help="A result of gpu_steps.py.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any]
    if options.gpu is None:
        results = {"simulated": list(simulated()), "between": list(between())}
    else:
        results = on_gpu(options.gpu) | {"gpu_file": options.gpu.name}
    write(options.out, "peak bytes of a training step: predicted against measured", results, quiet=True)


if __name__ == "__main__":
    main()
