"""Recipes: instead of a tensor, autograd keeps how to compute the tensor again.

The autograd graph records how each activation was made: the node of a `cat`, for example, holds the dimension and the
nodes of the parts. `pack` follows the graph upstream from the tensor that autograd saves. A path may end in a custom
node (`BatchNormAct`, `InputOnly`, `MaxPool`), which can compute its output from what it keeps, or in a leaf, which
exists anyway. If all paths end so, `pack` returns a recipe of these paths, and `unpack` computes the tensor from it.
Otherwise the tensor itself is kept, above all the output of a convolution or a matrix product. So no convolution and no
matrix product runs twice.

A recipe refers only to nodes upstream of the node that saves it, so there are no reference cycles. A computed tensor is
kept only while another recipe waits for it, and at most until backward has passed the node that made it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import TensorWeakRef

from models.recompute import copies
from models.recompute.copies import Concatenate
from models.recompute.input_only import InputOnly
from models.recompute.norm_act import BatchNormAct
from models.recompute.pooling import MaxPool

OVERWRITTEN = "an output that backward needs was changed in place by a later layer: set model.recompute: none"
_KEPT = "kept output"
_NUMBER = "number"


@dataclass(frozen=True)
class Recipe:
    """A function and the recipes of its arguments."""

    function: Callable[..., Tensor]
    inputs: tuple[Recipe, ...] = ()

    def make(self) -> Tensor:
        """Compute the tensor."""
        return self.function(*[recipe.make() for recipe in self.inputs])

    def make_in(self, place: Tensor) -> None:
        """Compute the tensor and write it to ``place``, a part of a larger map."""
        copies.place(self.make(), place)

    def skip(self) -> None:
        """Give up this use of the tensor."""
        for recipe in self.inputs:
            recipe.skip()


@dataclass(frozen=True)
class _Joined(Recipe):
    """Concatenation of maps: ``function`` takes for each map a function that writes the map to its place."""

    def make(self) -> Tensor:
        return self.function([recipe.make_in for recipe in self.inputs])


@dataclass(slots=True)
class _Output:
    """One output of a custom node: the number of recipes that wait for it, and the result between two uses."""

    num_uses: int = 0
    result: Tensor | None = None


@dataclass(frozen=True)
class _FromNode(Recipe):
    """Recipe of one output of a custom node; ``function`` can write the output to a given place."""

    output: _Output = field(default_factory=_Output)

    def make(self) -> Tensor:
        result = self.output.result
        if result is None:
            result = super().make()
        else:
            super().skip()
        self._count(result)
        return result

    def make_in(self, place: Tensor) -> None:
        if self.output.result is None and self.output.num_uses == 1:
            self._count(self.function(*[recipe.make() for recipe in self.inputs], out_BCHW=place))
        else:
            super().make_in(place)

    def skip(self) -> None:
        super().skip()
        self._count(self.output.result)

    def _count(self, result: Tensor | None) -> None:
        self.output.num_uses -= 1
        self.output.result = result if self.output.num_uses > 0 else None


def pack(tensor: Tensor) -> Tensor | Recipe:
    """Return the recipe of a tensor that autograd saves, or the tensor itself if it has none."""
    if tensor.is_leaf:
        return tensor
    sources: list[_FromNode] = []
    if tensor._is_view():
        base: Any = tensor._base
        recipe = _trace(base.grad_fn, base.output_nr, sources)
        if recipe is not None:
            layout = tensor.size(), tensor.stride(), tensor.storage_offset()
            recipe = Recipe(partial(_view, base.stride(), *layout), (recipe,))
    else:
        recipe = _trace(tensor.grad_fn, tensor.output_nr, sources)
    if recipe is None:
        return tensor.detach()
    for source in sources:
        source.output.num_uses += 1
    return recipe


@torch.no_grad()
def unpack(packed: Tensor | Recipe) -> Tensor:
    """Return the tensor that was packed."""
    return packed.make() if isinstance(packed, Recipe) else packed


def keep(tensor: Tensor) -> list[Tensor]:
    """Detach a tensor, and the tensor that it is a view of. While the results exist, recipes start from them."""
    base: Any = tensor._base
    results = []
    for source in (tensor,) if base is None else (tensor, base):
        kept = source.detach()
        node: Any = source.grad_fn
        if node is not None:
            node.metadata.setdefault(_KEPT, {})[source.output_nr] = TensorWeakRef(kept), kept._version
        results.append(kept)
    return results


def note_number(result: Tensor, number: float) -> None:
    """Store a number from which ``result`` was computed, for operators of which autograd does not keep it."""
    node: Any = result.grad_fn
    if node is not None:
        node.metadata[_NUMBER] = number


def _unchanged(kept: Tensor, version: int) -> Tensor:
    """A kept tensor, unless it was changed in place since."""
    if kept._version != version:
        raise RuntimeError(OVERWRITTEN)
    return kept.detach()


def _trace(node: Any, index: int, sources: list[_FromNode]) -> Recipe | None:
    """Recipe of output ``index`` of ``node``, or None; appends the recipes of custom nodes in it to ``sources``."""
    if node is None:
        return None
    if index in node.metadata.get(_KEPT, ()):
        reference, version = node.metadata[_KEPT][index]
        kept = reference()
        return None if kept is None or kept._version != version else Recipe(partial(_unchanged, kept, version))
    if getattr(node, "_forward_cls", None) in (BatchNormAct, InputOnly, MaxPool):
        residual = _trace_all(node.next_functions[3:], sources)
        if residual is None:
            return None
        if not hasattr(node, "recipe_outputs"):
            node.recipe_outputs = defaultdict(_Output)
        source = _FromNode(partial(node._forward_cls.output, node, index), residual, node.recipe_outputs[index])
        sources.append(source)
        return source
    rule = _RULES.get(node.name())
    if rule is None:
        return None
    number = node.metadata.get(_NUMBER)
    function, inputs = rule(node, index), _trace_all(node.next_functions, sources, number)
    if function is None or inputs is None:
        return None
    kind = _Joined if rule is _join else Recipe
    return kind(function, inputs)


def _trace_all(
    edges: Iterable[tuple[Any, int]], sources: list[_FromNode], number: float | None = None
) -> tuple[Recipe, ...] | None:
    """Recipes of several outputs, given as pairs of node and index, or None if one output has no recipe.

    An edge without a node stands for an input without a gradient: ``number`` if given.
    """
    recipes = []
    for node, index in edges:
        if node is None and number is not None:
            recipe: Recipe | None = Recipe(partial(_given, number))
        else:
            recipe = _trace(node, index, sources)
        if recipe is None:
            return None
        recipes.append(recipe)
    return tuple(recipes)


def _given(number: Any) -> Any:
    return number


def _join(node: Any, _: int) -> Callable[[list[Callable[[Tensor], None]]], Tensor]:
    return partial(Concatenate.output, node)


def _view(
    base_stride: tuple[int, ...], size: torch.Size, stride: tuple[int, ...], offset: int | torch.SymInt, base: Tensor
) -> Tensor:
    if base.stride() != base_stride:
        base = torch.empty_strided(base.shape, base_stride, dtype=base.dtype, device=base.device).copy_(base)
    return base.as_strided(size, stride, offset)


def _dim(saved: int) -> int:
    """Restore a dimension that a node saved; PyTorch returns negative ones as unsigned 64-bit numbers."""
    return saved - 2**64 if saved >= 2**63 else saved


def _pad(node: Any, _: int) -> Callable[[Tensor], Tensor] | None:
    number = node.metadata.get(_NUMBER)
    return None if number is None else partial(functional.pad, pad=node._saved_pad, value=number)


def _average(node: Any, _: int) -> Callable[[Tensor], Tensor]:
    return partial(
        functional.avg_pool2d,
        kernel_size=node._saved_kernel_size,
        stride=node._saved_stride,
        padding=node._saved_padding,
        ceil_mode=node._saved_ceil_mode,
        count_include_pad=node._saved_count_include_pad,
        divisor_override=node._saved_divisor_override,
    )


def _cat(node: Any, _: int) -> Callable[..., Tensor]:
    dim = _dim(node._saved_dim)
    return lambda *parts: torch.cat(parts, dim)


def _split(node: Any, index: int) -> Callable[[Tensor], Tensor]:
    dim = _dim(node._saved_dim)
    sizes = node._saved_split_sizes if node.name() == "SplitWithSizesBackward0" else node._saved_split_size
    return lambda x: x.split(sizes, dim)[index]


def _transpose(node: Any, _: int) -> Callable[[Tensor], Tensor]:
    return partial(torch.transpose, dim0=_dim(node._saved_dim0), dim1=_dim(node._saved_dim1))


def _elu(node: Any, _: int) -> Callable[[Tensor], Tensor]:
    scales = {"alpha": node._saved_alpha, "scale": node._saved_scale, "input_scale": node._saved_input_scale}
    return partial(torch.ops.aten.elu.default, **scales)


def _hardtanh(node: Any, _: int) -> Callable[[Tensor], Tensor]:
    return partial(functional.hardtanh, min_val=node._saved_min_val, max_val=node._saved_max_val)


def _leaky_relu(node: Any, _: int) -> Callable[[Tensor], Tensor]:
    return partial(functional.leaky_relu, negative_slope=node._saved_negative_slope)


# Name of an autograd node to a function of the node and the index of an output, which returns the forward operation: a
# function of the inputs. It does not refer to the node, which may save its own output. None means no recipe.
_RULES: dict[str, Callable[[Any, int], Callable[..., Tensor] | None]] = {
    "AddBackward0": lambda node, _: partial(torch.add, alpha=node._saved_alpha),
    "AvgPool2DBackward0": _average,
    "ConcatenateBackward": _join,
    "ConstantPadNdBackward0": _pad,
    "MulBackward0": lambda *_: torch.mul,
    "UpsampleBackward": lambda node, _: partial(copies.upsample, scale=node.scale),
    "CatBackward0": _cat,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split,
    "ToCopyBackward0": lambda node, _: partial(torch.Tensor.to, dtype=node._input_metadata[0].dtype),
    "TransposeBackward0": _transpose,
    "UpsampleNearest2DBackward0": lambda node, _: partial(functional.interpolate, size=node._saved_output_size),
    "ViewBackward0": lambda node, _: partial(torch.reshape, shape=node._input_metadata[0].shape),
    "torch::autograd::AccumulateGrad": lambda node, _: node.variable.detach,
    # Activations. Those that run in place save a clone of their input, or their output.
    "CloneBackward0": lambda *_: torch.Tensor.detach,
    "EluBackward0": _elu,
    "EluBackward1": _elu,
    "GeluBackward0": lambda node, _: partial(functional.gelu, approximate=node._saved_approximate),
    "HardswishBackward0": lambda *_: functional.hardswish,
    "HardtanhBackward0": _hardtanh,
    "LeakyReluBackward0": _leaky_relu,
    "LeakyReluBackward1": _leaky_relu,
    "MishBackward0": lambda *_: functional.mish,
    "ReluBackward0": lambda *_: torch.relu,
    "SigmoidBackward0": lambda *_: torch.sigmoid,
    "SiluBackward0": lambda *_: functional.silu,
    "TanhBackward0": lambda *_: torch.tanh,
}
