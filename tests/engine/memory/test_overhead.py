"""The plan's bytes beside tensors match what the driver of an H200 reported, and depend on the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.memory import overhead
from engine.memory.overhead import beside_tensors, final_context_bytes, of_this_machine
from engine.memory.units import MIB
from engine.planning.simulation import StepSpec, simulate_step
from engine.training.config import ModelConfig
from tests.helpers import fake_gpu

RESULT = Path(__file__).parents[3] / "benchmarks" / "results" / "gpu_steps_2026-11-26.json"
MEASURED = json.loads(RESULT.read_text(encoding="utf-8"))
LEVELS = ("none", "elementwise", "block")
CELLS = [row for row in MEASURED["rows"] if row["rival"] in LEVELS]
CUDA = torch.device("cuda", 0)


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The card on which the cells were measured, as torch and the driver see it."""
    fake_gpu.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    empty_process_bytes = MEASURED["used_bytes_of_an_empty_process"]
    monkeypatch.setattr(overhead, "measured_context_bytes", lambda device: empty_process_bytes)
    return monkeypatch


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell['micro_batch']} {cell['precision']} {cell['rival']}")
def test_beside_tensors__is_what_the_driver_reported_beyond_torch(cell: dict, h200: pytest.MonkeyPatch) -> None:
    workspace_bytes, context_bytes = of_this_machine()
    parts = beside_tensors(cell["micro_batch"] * cell["image_size"] ** 2, workspace_bytes, context_bytes)
    beside_torch_bytes = parts["allocator_gaps"] + parts["cuda_context"]  # torch counts workspaces as its own
    # docs/memory.md: the plan is within 3.2 % of what the driver reports.
    assert cell["peak_allocated_bytes"] + beside_torch_bytes == pytest.approx(cell["used_bytes"], rel=0.033)


@pytest.mark.parametrize(("micro_batch", "level"), [(8, "none"), (16, "elementwise")])
def test_workspaces__complete_what_torch_allocated(micro_batch: int, level: str) -> None:
    """Not at `block`, which repeats more since these bytes were measured."""
    (cell,) = (
        cell
        for cell in CELLS
        if (cell["micro_batch"], cell["image_size"], cell["precision"], cell["rival"])
        == (micro_batch, 640, "fp16", level)
    )
    spec = StepSpec(ModelConfig(precision="fp16"), boxes_per_image=cell["boxes_per_image"])
    tensors = simulate_step(spec, micro_batch, level, accumulates=False)
    workspaces_bytes = beside_tensors(0, workspace_bytes=32 * MIB, context_bytes=0)["workspaces"]
    # docs/memory.md: the plan is within 0.3 % of what torch allocates.
    assert sum(tensors.values()) + workspaces_bytes == pytest.approx(cell["peak_allocated_bytes"], rel=0.004)


@pytest.mark.parametrize(("capability", "workspace_mib"), [((8, 9), 8.125), ((9, 0), 32), ((12, 0), 32)])
def test_of_this_machine__workspaces_grow_from_hopper_on(
    capability: tuple[int, int], workspace_mib: float, h200: pytest.MonkeyPatch
) -> None:
    h200.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert of_this_machine()[0] == workspace_mib * MIB


def test_final_context_bytes__counts_kernels_still_to_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "measured_context_bytes", lambda device: 400 * MIB)
    assert final_context_bytes(CUDA) == 656 * MIB
    monkeypatch.setattr(overhead, "measured_context_bytes", lambda device: None)
    assert final_context_bytes(CUDA) == 512 * MIB
