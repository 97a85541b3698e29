"""Level `block`: drops what autograd saves in a layer, and computes it again by a second forward pass in backward.

In the first pass, each saved tensor is replaced by its number, a slot without content. When backward asks for the first
slot, the layer runs forward again from its input and fills all slots with what `recipes.pack` returns. Thus a layer
holds what level `elementwise` holds while backward is inside the layer, and only its input at other times. Backward
takes the values out one by one, which frees them.

The layer must not draw random numbers. The layers of YOLO11 draw none.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from models.recompute import recipes
from models.recompute.repeat import Surroundings


class DroppedLayer:
    """One forward pass of one layer that backward can repeat."""

    def __init__(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._forward = forward
        self._input, self._input_requires_grad = recipes.pack(x), x.requires_grad
        self._surroundings = Surroundings(x.device.type)
        self._num_slots = 0
        self._values: dict[int, tuple[Tensor | recipes.Recipe, GradientEdge | None]] = {}
        self._output: Tensor | None = None

    def run(self, x: Tensor) -> Tensor:
        """Run the first pass and return the output."""
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
        """Run the second pass, which fills all slots."""
        self._values = {}
        self._output = None  # the layers after this one no longer need it
        x = recipes.unpack(self._input).detach().requires_grad_(self._input_requires_grad)
        # Autograd keeps the hook. The values hold edges of the same graph: if the hook held them too, this cycle would
        # never be freed after backward breaks off (out of memory).
        layer = weakref.proxy(self)
        with self._surroundings.again(), saved_tensors_hooks(lambda tensor: layer._keep(tensor), recipes.unpack):
            self._forward(x)
        assert len(self._values) == self._num_slots, "the second forward pass saved more or less than the first"

    def _keep(self, tensor: Tensor) -> Tensor | recipes.Recipe:
        packed = recipes.pack(tensor)
        # The edge holds the second graph, whose nodes would else lose their data at the end of the pass.
        edge = get_gradient_edge(tensor) if isinstance(packed, recipes.Recipe) else None
        self._values[len(self._values)] = packed, edge
        return packed
