"""Whole layers computed again: what autograd saves in a layer is dropped, and refilled by a second forward pass.

In the first pass every saved tensor becomes a number, a slot that holds nothing. The first slot that
backward asks for runs the layer's forward again, from its input; that pass fills all slots, and not with
tensors but with what `recipes.pack` makes of them. So a layer needs what it needs at level `elementwise`
while backward is inside it, and only its input the rest of the time. Backward takes the values out one by
one, which frees them on the way.

The layer must draw no random numbers; those of YOLO11 draw none.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from models.recompute import recipes
from models.recompute.repeat import Surroundings


class DroppedLayer:
    """One forward pass of one layer, and how to repeat it."""

    def __init__(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._forward = forward
        self._input, self._input_requires_grad = recipes.pack(x), x.requires_grad
        self._surroundings = Surroundings(x.device.type)
        self._num_slots = 0
        self._values: dict[int, tuple[Tensor | recipes.Recipe, GradientEdge | None]] = {}
        self._output: Tensor | None = None

    def run(self, x: Tensor) -> Tensor:
        """The first pass."""
        with saved_tensors_hooks(self._drop, self._refill):
            out = self._forward(x)
        self._output = recipes.keep(out)
        return out

    def _drop(self, _: Tensor) -> int:
        self._num_slots += 1
        return self._num_slots - 1

    def _refill(self, slot: int) -> Tensor:
        if slot not in self._values:
            self._repeat()
        packed, _ = self._values.pop(slot)
        return recipes.unpack(packed)

    def _repeat(self) -> None:
        """The second pass."""
        self._values = {}
        self._output = None  # whatever needed it is behind us
        x = recipes.unpack(self._input).detach().requires_grad_(self._input_requires_grad)
        # Autograd keeps the hook: with a strong reference to the values, which hold edges of the same graph, neither
        # would ever be freed where backward breaks off (out of memory) and leaves values behind.
        layer = weakref.proxy(self)
        with self._surroundings.again(), saved_tensors_hooks(lambda tensor: layer._keep(tensor), recipes.unpack):
            self._forward(x)
        assert len(self._values) == self._num_slots, "the second forward pass saved more or less than the first"

    def _keep(self, tensor: Tensor) -> Tensor | recipes.Recipe:
        packed = recipes.pack(tensor)
        # The second graph dies with this pass, and its nodes are emptied, unless its edges are held.
        edge = get_gradient_edge(tensor) if isinstance(packed, recipes.Recipe) else None
        self._values[len(self._values)] = packed, edge
        return packed
