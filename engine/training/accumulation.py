"""Exact gradient accumulation: the gradient of K micro-batches is the gradient of one big batch.

The detection loss of a batch is ``sum(terms) / normaliser``, and the normaliser (the sum of target scores) is known
only once every image has been through the network. Dividing each micro-batch by its own normaliser, as trainers
usually do, weighs the images of sparse micro-batches too much: the gradient comes out 5 to 30 % wrong. But the
gradient is linear in 1/normaliser, so it is enough to

1. back-propagate the un-normalised sums of every micro-batch, times one provisional scale,
2. add up the normalisers,
3. correct the accumulated gradient once per window by ``true scale / provisional scale``.

The provisional scale only keeps fp16 gradients in range; it is one over the window's boxes, which the host knows, and
cancels out.

What accumulation cannot make exact is BatchNorm, whose training statistics see one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.training.ranks import all_present, is_parallel
from models.detection.loss import MIN_NORMALISER, LossGains, LossSums

PART_BYTES = 25 * 2**20


class AccumulationWindow:
    """The gradient of one optimizer step, collected from micro-batches of any sizes.

    The result is ``num_images`` times the gradient of ``sum of gain * term / normaliser``, all three over the whole
    window and all ranks: what the Ultralytics loss gives for one batch of that many images.
    """

    def __init__(self, num_images: int, num_boxes: int, device: torch.device) -> None:
        """Start an empty window.

        Args:
            num_images: Images of the window on this rank.
            num_boxes: Boxes of the window on this rank.
            device: Of the network.
        """
        self.num_images = num_images
        self.scale = torch.full((), 1 / max(num_boxes, 1), device=device)
        """Provisional scale of every `back_propagate` of this window, float32."""
        self._totals = torch.zeros(4, device=device)

    def add(self, totals: Tensor) -> None:
        """Count a micro-batch whose gradient has been added up: what `back_propagate` returned for it."""
        self._totals = self._totals + totals

    def normalise(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Tensor:
        """Turn the accumulated sums into the window's gradient: correct once, add up over the ranks, unscale.

        The loss scale goes last: the scaler looks for inf and NaN in the sum over the ranks, so all find the same; and
        it can be asked once, so nothing may run out of memory after it.

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
    """Add the gradient of one micro-batch to those that are there.

    Args:
        sums: Its un-normalised loss sums.
        gains: Weights of the loss terms.
        scale: Provisional scale of the window, a scalar on the device.
        scaler: fp16 loss scaler, possibly disabled.

    Returns:
        Float (4,) on the device: box, cls and dfl sum with their gains, and the normaliser.
    """
    terms = gains.apply(sums)
    scaler.scale(terms.sum() * scale).backward()
    return torch.cat([terms.detach(), sums.normaliser.view(1)])


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients of every parameter that the optimizer changes and that took part."""
    return [parameter.grad for parameter in _parameters_of(optimizer) if parameter.grad is not None]


def fill_missing_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Zeros on a rank that had no images: all ranks add up the same tensors."""
    for parameter in _parameters_of(optimizer):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _parameters_of(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def all_reduce_sum(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks; nothing to do in a single process.

    They travel in a few large parts, because each one that travels costs a round trip.

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
