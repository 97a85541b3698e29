"""Nothing between two optimizer steps makes the host wait for the device.

Without a device, the test counts on CPU tensors the operations that would wait on a GPU. A function mode sees Python
read a tensor's value (``tolist``, ``cpu``, ``item``, a truth value). A dispatch mode sees operators that need a value
to know the shape of their result, also in backward.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.training.step import TrainingStep
from models.recompute.levels import apply_recompute
from tests.helpers.training import make_network, make_step, make_window

ROOT = Path(__file__).parents[3]
HOST_ONLY = {("data/loading/batch.py", "split"), ("data/loading/batch.py", "_slice")}  # the window is in host memory
READS = {"tolist", "cpu", "numpy", "item", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"}
WAITING_OPERATORS = {
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "argwhere", "masked_select", "equal",
    "unique_dim", "_unique", "_unique2", "unique_consecutive", "repeat_interleave", "bincount", "_assert_async",
    "histc", "linalg_eig", "allclose",
}  # fmt: skip


def our_caller() -> tuple[str, str]:
    """File and function of the innermost frame of this project."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))]
    ours = [(Path(f.filename).relative_to(ROOT).as_posix(), f.name) for f in frames if f.filename != __file__]
    return ours[-1] if ours else ("?", "?")


class Waits:
    """Collects the names of operations and their callers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[str, str]]] = []

    def note(self, name: str) -> None:
        """Add an operation, unless it always works on host memory."""
        place = our_caller()
        if place not in HOST_ONLY:
            self.seen.append((name, place))

    def during(self, function: Callable[[], Any]) -> list[tuple[str, tuple[str, str]]]:
        """The operations that are seen while ``function`` runs."""
        self.seen = []
        with PythonReads(self), WaitingOperators(self):
            function()
        return self.seen


class PythonReads(TorchFunctionMode):
    """Notes tensors that become Python values, and copies to the host that wait."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Note the call, then run it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in READS:
            self.waits.note(name)
        # a torch.device is the network's own, which is the CPU here; code that wants the host says "cpu"
        if name == "to" and any(isinstance(value, str) and value == "cpu" for value in (*args[1:], *kwargs.values())):
            self.waits.note("asynchronous copy" if kwargs.get("non_blocking") else "copy")
        if name == "__getitem__" and any(is_mask(index) for index in as_tuple(args[1])):
            self.waits.note("indexing with a mask")
        return func(*args, **kwargs)


class WaitingOperators(TorchDispatchMode):
    """Notes operators whose result's shape, or whose Python value, depends on data."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Note the call, then run it."""
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(map(is_mask, args[1]))
        if name in WAITING_OPERATORS or masks:
            self.waits.note(name)
        return func(*args, **(kwargs or {}))


def as_tuple(index: Any) -> tuple:
    return index if isinstance(index, tuple) else (index,)


def is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def third_step(step: TrainingStep) -> list[tuple[str, tuple[str, str]]]:
    """The operations of the third step, when all state exists."""
    windows = [make_window([2, 0, 5, 1], seed=seed) for seed in range(3)]
    step.run(windows[0])
    step.run(windows[1])
    return Waits().during(lambda: step.run(windows[2]))


READ_ONE_STEP_LATE = [
    ("tolist", ("engine/training/step.py", "settle")),  # of the previous step's outcome, which was copied long ago
    ("asynchronous copy", ("engine/training/step.py", "_read_back")),
]


@pytest.mark.parametrize("recompute", ["none", "elementwise", "block"])
def test_run__never_waits(recompute: str) -> None:
    network = make_network(frozen=False)
    apply_recompute(network, recompute)
    assert third_step(make_step(network, micro_batch_size=2)) == READ_ONE_STEP_LATE


@pytest.mark.parametrize("precision", ["bf16", "fp32 with a scaler"])
def test_run__never_waits_in_any_precision(precision: str) -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=precision != "bf16")
    step = make_step(make_network(frozen=False), 2, precision=precision[:4], scaler=scaler)
    assert third_step(step) == READ_ONE_STEP_LATE


def test_run__never_waits_for_a_skipped_window() -> None:
    network = make_network(frozen=False)
    step = make_step(network, micro_batch_size=2)
    network.register_forward_hook(lambda module, inputs, output: output | {"boxes": output["boxes"] * float("nan")})
    assert third_step(step) == READ_ONE_STEP_LATE
    assert not step.settle().finite


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.__setitem__(x > 0, torch.ones(2)),
        lambda x: x.long().repeat_interleave(x.long().abs()),
    ],
)
def test_waits__are_noticed(wait: Callable[[Tensor], Any]) -> None:
    assert Waits().during(lambda: wait(torch.tensor([1.0, -2.0, 3.0])))
