"""Runs a part of the forward pass a second time, during backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

is_repeating: ContextVar[bool] = ContextVar("is_repeating", default=False)
"""True while a forward pass is repeated. Counters of batches must not count this batch again."""
before_batch_norm: ContextVar[Callable[[Tensor, Callable[[], tuple[Tensor, Tensor]]], None] | None] = ContextVar(
    "before_batch_norm", default=None
)
"""Called by `BatchNormAct` before it runs, in layers at `block`. Arguments: its input, and a function that computes the
two statistics it saves. May raise `EndOfRepeat`."""
KNOWN_MODULES = ("torch.nn.modules.", "ultralytics.nn.modules.")
"""Python modules whose layers draw no random numbers, except `DRAWING_LAYERS` and layers with a ``dropout``."""
DRAWING_LAYERS = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


class EndOfRepeat(Exception):
    """Raised in a repeated forward pass when backward needs no later tensor."""


@contextmanager
def calling(function: Callable[[Tensor, Callable[[], tuple[Tensor, Tensor]]], None]) -> Iterator[None]:
    """Set ``before_batch_norm``; ``EndOfRepeat`` ends the ``with`` block."""
    token = before_batch_norm.set(function)
    try:
        yield
    except EndOfRepeat:
        pass
    finally:
        before_batch_norm.reset(token)


def can_draw(module: nn.Module) -> bool:
    """Whether the forward pass of a module, without its submodules, may draw random numbers; True for unknown ones."""
    if not type(module).__module__.startswith(KNOWN_MODULES):
        return True
    return isinstance(module, DRAWING_LAYERS) or bool(getattr(module, "dropout", False))


class Surroundings:
    """The autocast settings and function modes of a forward pass.

    Backward runs without them, on CUDA even in another thread.
    """

    def __init__(self, device_type: str) -> None:
        """Store the present settings for operators on ``device_type``."""
        self._function_modes = _get_current_function_mode_stack()
        self._autocast: AbstractContextManager[object] = nullcontext()
        if torch.amp.is_autocast_available(device_type):
            self._autocast = torch.autocast(
                device_type,
                dtype=torch.get_autocast_dtype(device_type),
                enabled=torch.is_autocast_enabled(device_type),
                cache_enabled=torch.is_autocast_cache_enabled(),
            )

    @contextmanager
    def again(self) -> Iterator[None]:
        """Restore the settings, with gradients on and ``is_repeating`` set."""
        token = is_repeating.set(True)
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                stack.enter_context(self._autocast)
                for mode in self._function_modes:
                    stack.enter_context(mode)
                yield
        finally:
            is_repeating.reset(token)


class State:
    """Buffers and random generators as they are before a forward pass that may change them.

    Memory: a copy of the buffers.
    """

    def __init__(self, modules: Iterable[nn.Module], generators: Iterable[torch.Generator]) -> None:
        """Store the present state of the modules' own buffers and of the generators."""
        self._buffers = [
            (module, name, buffer.clone()) for module in modules for name, buffer in module.named_buffers(recurse=False)
        ]
        self._generators = [(generator, generator.get_state()) for generator in generators]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Restore the state; at the end, undo what has changed in between."""
        buffers = [(module, name, getattr(module, name)) for module, name, _ in self._buffers]
        generators = [(generator, generator.get_state()) for generator, _ in self._generators]
        try:
            _restore(self._buffers, self._generators)
            yield
        finally:
            _restore(buffers, generators)


def _restore(
    buffers: Iterable[tuple[nn.Module, str, Tensor]], generators: Iterable[tuple[torch.Generator, Tensor]]
) -> None:
    for module, name, buffer in buffers:
        setattr(module, name, buffer)
    for generator, state in generators:
        generator.set_state(state)


def default_generators(device: torch.device) -> list[torch.Generator]:
    """The random generators that operators on a device draw from by default: the CPU's, and the device's own."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    return generators
