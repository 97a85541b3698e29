"""What happens when a gradient is inf or NaN: the whole window is skipped, counted and named; too many end the run.

While training, only the norm of the window's gradient and BatchNorm's running statistics are looked at, on the device.
Where it went wrong, layer and images, is found once, before a run ends because of it: `find_origin` takes the window's
pass again and looks at each layer. Memory: as much as a micro-batch of training.
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
from engine.errors import TrainingError
from engine.training.ranks import is_parallel
from models.detection.loss import LossSums

log = logging.getLogger(__name__)
MAX_NAMES = 8
TERMS = ("box", "cls", "dfl")


class NonFiniteGuard:
    """Counts skipped windows and ends the run after too many in a row."""

    def __init__(self, max_in_a_row: int, diagnose: Callable[[], str] = lambda: "") -> None:
        """Count from 0.

        Args:
            max_in_a_row: Skipped windows without a good one between that end the run.
            diagnose: Says where the last of them went wrong, in half a sentence; "" if that is not known.
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
        """Note whether a window's gradient was finite; ``names`` are that window's images, of all ranks.

        Raises:
            TrainingError: After ``max_in_a_row`` skipped windows without a good one between.
        """
        if finite:
            self.num_in_a_row = 0
            return
        self.num_skipped += 1
        self.num_in_a_row += 1
        shown = _some_of(names)
        if not is_parallel() or dist.get_rank() == 0:  # all ranks know the same
            reason = "its gradient, or a statistic of BatchNorm, is inf or NaN"
            log.warning("optimizer step skipped (%d in all): %s: %s", self.num_skipped, reason, shown)
        if self.num_in_a_row >= self.max_in_a_row:
            where = self.diagnose()
            raise TrainingError(
                f"{self.num_in_a_row} windows in a row had an inf or NaN gradient, the last with {shown}"
                f"{f'; it begins in {where}' if where else ''}: lower model.optimizer.lr, use model.precision bf16 or "
                "fp32, or look at these images and labels"
            )


def find_origin(
    network: nn.Module,
    micro_batches: Sequence[Batch],
    loss_sums: Callable[[Batch], LossSums],
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> str:
    """Where the first inf or NaN of a window appears: a weight, a layer's output, the loss, a gradient or a statistic.

    Args:
        network: In training mode; its gradients are dropped, its weights stay, its running statistics move.
        micro_batches: The window as it was trained on, on the device.
        loss_sums: The training's forward pass and un-normalised loss.
        scale: The training's loss scaling.

    Returns:
        Half a sentence that names layer and images, such as "the output of model.9.cv1.conv, of board7.jpg"; "" if
        everything is finite this time.
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
    """The first weight or running statistic that is inf or NaN."""
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
            return f"the {bad} loss of {_some_of(batch.names)}"
        if not found:
            scale(terms.sum() / sums.normaliser.clamp(min=1)).backward()
    if not found:
        return ""
    place, is_bad_B = found[0]
    of = [name for name, is_bad in zip(batch.names, is_bad_B.tolist(), strict=True) if is_bad]
    return f"{place}, of {_some_of(of)}"


@contextmanager
def _watch(network: nn.Module, found: list[tuple[str, Tensor]]) -> Iterator[None]:
    """Collect the places, in the order of computation, where some image's output or its gradient is not finite."""

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

    # Activations are one object for the whole network: they have no name of their own.
    layers = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules() if name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _some_of(names: Sequence[str]) -> str:
    rest = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + rest
