"""Level `block`: drops what autograd saves in a layer, and computes it again by a second forward pass in backward.

In the first pass, each saved tensor is replaced by its number, a slot without content. When backward asks for the first
slot, the layer runs forward again from its input and fills all slots with what `recipes.pack` returns. So outside its
own backward a layer holds only its input; during it, as much as at `elementwise`. Backward takes the values out one by
one, which frees them.

The second pass starts in the state of the first: `repeat.State` restores buffers that a pass changes, and random
generators. So BatchNorm updates its statistics once, and dropout draws the same mask. The second pass ends before
the output of the last BatchNorm, which nothing needs. A layer that cannot be repeated is refused: one that changes its
input in place, and one whose second pass saves another number of tensors than the first.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_iter, tree_unflatten

from models.recompute import recipes
from models.recompute.repeat import EndOfRepeat, State, Surroundings, calling, default_generators


class _Input(NamedTuple):
    """A tensor that a layer reads."""

    packed: Tensor | recipes.Recipe
    requires_grad: bool
    version: int
    """Number of changes in place before the layer."""

    def again(self) -> Tensor:
        """Return the tensor as a leaf of a new graph."""
        tensor = recipes.unpack(self.packed)
        if isinstance(self.packed, Tensor) and tensor._version != self.version:
            raise RuntimeError(recipes.OVERWRITTEN)
        return tensor.detach().requires_grad_(self.requires_grad)


class DroppedLayer:
    """One forward pass of one layer that backward can repeat."""

    def __init__(
        self,
        name: str,
        forward: Callable[[Any], Any],
        x: Any,
        stateful_modules: Sequence[nn.Module] = (),
        can_draw: bool = False,
        holds_output: bool = True,
    ) -> None:
        """Pack the input and the state of the first pass.

        Args:
            name: Name of the layer, for errors.
            forward: Forward pass of the layer.
            x: Its input: a tensor, or lists, tuples and dicts of tensors and other values.
            stateful_modules: Modules whose buffers a forward pass may change.
            can_draw: Whether a forward pass may draw random numbers.
            holds_output: Keep the output until the second pass, so that the recipes of later layers can start at it.
        """
        self._name, self._forward, self._holds_output = name, forward, holds_output
        leaves, self._structure = tree_flatten(x)
        device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), torch.device("cpu"))
        self._inputs = [
            _Input(recipes.pack(leaf), leaf.requires_grad, leaf._version) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        self._surroundings = Surroundings(device.type)
        self._state = State(stateful_modules, default_generators(device) if can_draw else ())
        self._num_slots = 0
        self._batch_norm_slot = -1
        self._values: dict[int, tuple[Tensor | recipes.Recipe, GradientEdge | None]] = {}
        self._outputs: list[Tensor] = []

    def run(self, x: Any) -> Any:
        """Run the first pass and return the output.

        Raises:
            ValueError: If the layer changes its input in place. Backward raises it if the second pass differs.
        """
        tensors = [leaf for leaf in tree_iter(x) if isinstance(leaf, Tensor)]  # the layer may change a list
        versions = [tensor._version for tensor in tensors]
        with saved_tensors_hooks(self._drop, self._refill), calling(self._note_batch_norm):
            out = self._forward(x)
        if [tensor._version for tensor in tensors] != versions:
            raise self._refusal("it changes its input in place")
        outputs = [kept for leaf in tree_iter(out) if isinstance(leaf, Tensor) for kept in recipes.keep(leaf)]
        if self._holds_output:
            self._outputs = outputs
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
        self._outputs = []  # the layers after this one no longer need them
        leaves = [leaf.again() if isinstance(leaf, _Input) else leaf for leaf in self._inputs]
        # Autograd keeps the hook. The values hold edges of the same graph: if the hook held them too, this cycle would
        # never be freed after backward breaks off (out of memory).
        layer = weakref.proxy(self)
        hooks = saved_tensors_hooks(lambda tensor: layer._keep(tensor), recipes.unpack)
        with calling(self._end_at_last_batch_norm), self._surroundings.again(), self._state.again(), hooks:
            self._forward(tree_unflatten(leaves, self._structure))
        if len(self._values) != self._num_slots:
            raise self._refusal(f"it saved {self._num_slots} tensors first and {len(self._values)} when repeated")

    def _note_batch_norm(self, *_: object) -> None:
        self._batch_norm_slot = self._num_slots

    def _end_at_last_batch_norm(self, x: Tensor, statistics: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Fill the last three slots and end the pass, without the output of the layer, if a BatchNorm saves last."""
        if len(self._values) == self._batch_norm_slot == self._num_slots - 3:
            self._keep(x)
            once = cache(statistics)  # computed in backward, when the pass and its other tensors are gone
            for i in range(2):
                self._values[len(self._values)] = recipes.Recipe(lambda i=i: once()[i]), None
            raise EndOfRepeat

    def _refusal(self, reason: str) -> ValueError:
        remedy = "Set this layer to elementwise in model.recompute_layers."
        return ValueError(f"model.recompute: {self._name}: level block cannot repeat it: {reason}. {remedy}")

    def _keep(self, tensor: Tensor) -> Tensor | recipes.Recipe:
        packed = recipes.pack(tensor)
        # The edge holds the second graph, whose nodes would else lose their data at the end of the pass.
        edge = get_gradient_edge(tensor) if isinstance(packed, recipes.Recipe) else None
        self._values[len(self._values)] = packed, edge
        return packed
