"""Skips, counts and names windows whose gradient is inf or NaN, and ends the run after too many in a row.

During training, only the norm of the window's gradient and the running statistics are checked, on the device. Before a
run ends, `find_origin` repeats the passes of the last window and checks every layer.

Memory: `find_origin` needs as much as a micro-batch of training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.loading.batch import Batch
from engine.errors import TrainingError, some_of
from engine.training.ranks import is_parallel
from models.detection.loss import LossSums

log = logging.getLogger(__name__)
TERMS = ("box", "cls", "dfl")


class NonFiniteGuard:
    """Counts skipped windows and ends the run after too many in a row."""

    def __init__(self, max_in_a_row: int, diagnose: Callable[[], str] = lambda: "") -> None:
        """Start to count at 0.

        Args:
            max_in_a_row: Number of skipped windows in a row that ends the run.
            diagnose: Returns where the last of them became inf or NaN, or "" if that is not known.
        """
        self.max_in_a_row = max_in_a_row
        self.diagnose = diagnose
        self.num_skipped = 0
        self.num_in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """Return the number of skipped windows, for a checkpoint."""
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue to count from `state_dict`."""
        self.num_skipped = state["num_skipped"]

    def record(self, finite: bool, names: Sequence[str]) -> None:
        """Count a window.

        Args:
            finite: Whether its gradient and the running statistics were finite.
            names: Its images, of all ranks if it was skipped.

        Raises:
            TrainingError: After ``max_in_a_row`` skipped windows in a row.
        """
        if finite:
            self.num_in_a_row = 0
            return
        self.num_skipped += 1
        self.num_in_a_row += 1
        shown = some_of(names)
        if not is_parallel() or dist.get_rank() == 0:  # all ranks would log the same
            reason = "its gradient, or a statistic of BatchNorm, is inf or NaN"
            log.warning("optimizer step skipped (%d in total): %s: %s", self.num_skipped, reason, shown)
        if self.num_in_a_row >= self.max_in_a_row:
            where = self.diagnose()
            raise TrainingError(
                f"{self.num_in_a_row} windows in a row had an inf or NaN gradient, the last with {shown}"
                f"{f'; it begins in {where}' if where else ''}. Lower model.optimizer.lr, use model.precision bf16 or "
                "fp32, or look at these images and labels."
            )


def find_origin(
    network: nn.Module,
    micro_batches: Sequence[Batch],
    loss_sums: Callable[[Batch], LossSums],
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> str:
    """Find the first inf or NaN of a window: in a weight, a layer's output, the loss, a gradient or a statistic.

    Args:
        network: In training mode. Its gradients are dropped, its running statistics change, its weights do not.
        micro_batches: The same as in training, on the device.
        loss_sums: Forward pass and loss sums of training.
        scale: Loss scaling of training.

    Returns:
        Layer and images, such as "the output of model.9.cv1.conv, of board7.jpg"; "" if everything is finite now.
    """
    if found := _bad_number(network):
        return found
    network.zero_grad(set_to_none=True)
    try:
        for micro_batch in micro_batches:
            if found := _look_at(network, micro_batch, loss_sums, scale):
                return found
    finally:
        network.zero_grad(set_to_none=True)
    return _bad_number(network)


def _bad_number(network: nn.Module) -> str:
    """The first weight or running statistic that is inf or NaN; "" if there is none."""
    for kind, tensors in (("weight", network.named_parameters()), ("statistic", network.named_buffers())):
        for name, tensor in tensors:
            if not tensor.isfinite().all():
                return f"the {kind} {name}"
    return ""


def _look_at(
    network: nn.Module,
    batch: Batch,
    loss_sums: Callable[[Batch], LossSums],
    scale: Callable[[Tensor], Tensor],
) -> str:
    found: list[tuple[str, Tensor]] = []
    with _watch(network, found):
        sums = loss_sums(batch)
        terms = torch.stack([sums.box, sums.cls, sums.dfl])
        if not found and not terms.isfinite().all():
            bad = ", ".join(name for name, term in zip(TERMS, terms.tolist(), strict=True) if term - term != 0)
            return f"the {bad} loss of {some_of(batch.names)}"
        if not found:
            scale(terms.sum() / sums.normaliser.clamp(min=1)).backward()
    if not found:
        return ""
    place, is_bad_B = found[0]
    of = [name for name, is_bad in zip(batch.names, is_bad_B.tolist(), strict=True) if is_bad]
    return f"{place}, of {some_of(of)}"


@contextmanager
def _watch(network: nn.Module, found: list[tuple[str, Tensor]]) -> Iterator[None]:
    """Collect, in the order of computation, where the output of an image or its gradient is not finite."""

    def look(place: str, tensor: Tensor) -> None:
        is_bad_B = ~tensor.detach().isfinite().flatten(1).all(dim=1)
        if is_bad_B.any():
            found.append((place, is_bad_B))

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look_at_both(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.dim() < 2:
                return
            look(f"the output of {name}", output)
            if output.requires_grad:
                output.register_hook(lambda gradient: look(f"the gradient of the output of {name}", gradient))

        return look_at_both

    # Activation modules are shared by the whole network, so their names tell nothing.
    layers = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules() if name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
