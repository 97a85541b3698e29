"""Exact gradient accumulation: the gradient of K micro-batches equals the gradient of one big batch.

The detection loss of a batch is ``sum(terms) / normaliser``. The normaliser is the sum of target scores, which is known
only after every image has passed through the network. Most trainers divide each micro-batch by its own normaliser.
Images of sparse micro-batches then weigh too much, and the gradient is 5 to 30 % wrong. The gradient is linear in
1/normaliser, so it is exact to

1. back-propagate the undivided sums of every micro-batch, times one provisional scale,
2. add up the normalisers,
3. multiply the accumulated gradient once per window by ``true scale / provisional scale``.

The provisional scale keeps fp16 gradients in range and cancels out. It is one over the number of boxes of the window,
which the host knows.

BatchNorm stays inexact: its training statistics see one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.training.ranks import all_present, is_parallel
from models.detection.loss import MIN_NORMALISER, LossGains, LossSums

PART_BYTES = 25 * 2**20
"""Size of one transfer between ranks: few transfers, because each one costs a round trip."""


class AccumulationWindow:
    """The gradient of one optimizer step, accumulated from micro-batches of any sizes.

    The result is ``num_images`` times the gradient of ``sum of gain * term / normaliser``, all three over the whole
    window and all ranks. The Ultralytics loss gives the same for one batch of that many images.
    """

    def __init__(self, num_images: int, num_boxes: int, device: torch.device) -> None:
        """Start a window with so many images and boxes on this rank; ``device`` is that of the network."""
        self.num_images = num_images
        self.scale = torch.full((), 1 / max(num_boxes, 1), device=device)
        """Provisional scale of every `back_propagate` of this window, float32."""
        self._totals = torch.zeros(4, device=device)

    def add(self, totals: Tensor) -> None:
        """Add the totals that `back_propagate` returned for a micro-batch."""
        self._totals = self._totals + totals

    def normalise(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Tensor:
        """Turn the accumulated gradient into the window's gradient: rescale, add up over the ranks, unscale.

        The loss scaler comes last. It then looks for inf and NaN in the sum over the ranks, so all ranks find the same.
        It accepts one call per step, so no operation that can run out of memory may follow it.

        Returns:
            Float (3,) on the device: box, cls and dfl loss of the window.
        """
        gradients = gradients_of(optimizer)
        totals = torch.cat([self._totals, self._totals.new_full((1,), self.num_images)]).to(gradients[0])
        all_reduce_sum([totals])
        normaliser = totals[3].clamp(min=MIN_NORMALISER)
        torch._foreach_mul_(gradients, totals[4] / normaliser / self.scale)
        all_reduce_sum(gradients)
        losses = totals[:3] / normaliser
        scaler.unscale_(optimizer)
        return losses


def back_propagate(sums: LossSums, gains: LossGains, scale: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
    """Add the gradient of one micro-batch to the accumulated gradient.

    ``sums`` are not normalised; ``scale`` is the provisional scale of the window, a scalar on the device.

    Returns:
        Float (4,) on the device: box, cls and dfl sum times their gains, and the normaliser.
    """
    terms = gains.apply(sums)
    scaler.scale(terms.sum() * scale).backward()
    return torch.cat([terms.detach(), sums.normaliser.view(1)])


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients of all parameters of the optimizer that have one."""
    return [parameter.grad for parameter in _parameters_of(optimizer) if parameter.grad is not None]


def fill_missing_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Set missing gradients to 0 on a rank without images, so that all ranks add up the same tensors."""
    for parameter in _parameters_of(optimizer):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _parameters_of(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def all_reduce_sum(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks; does nothing in a single process.

    Memory: `PART_BYTES` beside the tensors.
    """
    if not is_parallel():
        return
    for part in _parts(tensors):
        flat = torch.cat([tensor.flatten() for tensor in part])
        with all_present():
            dist.all_reduce(flat)
        sums = flat.split([tensor.numel() for tensor in part])
        torch._foreach_copy_(part, [total.view_as(tensor) for total, tensor in zip(sums, part, strict=True)])


def _parts(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    part: list[Tensor] = []
    part_bytes = 0
    for tensor in tensors:
        if part and part_bytes + tensor.nbytes > PART_BYTES:
            yield part
            part, part_bytes = [], 0
        part.append(tensor)
        part_bytes += tensor.nbytes
    if part:
        yield part
