"""Recovery from running out of memory: the same optimizer step, with less on the device at a time.

A window is a transaction. If memory runs out in its forward or backward passes, its gradients are dropped, BatchNorm's
running statistics go back to what they were, and the whole window is done again at the next lower settings; the
optimizer has not moved yet, so no image is lost and none counts twice. If it runs out afterwards, while the gradient is
finished and used, what has been done is kept and the rest is carried through: see `engine.training.carry_through`.

Everything is freed before the next attempt, which is why `retry` leaves its except block first: a caught error holds,
through its traceback, every tensor of the failed pass.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, get_args

import torch
from torch import nn

from data.loading.batch import Batch
from engine.errors import TrainingError
from engine.training.ranks import Ranks
from models.recompute.levels import Level, apply_recompute

log = logging.getLogger(__name__)
Result = TypeVar("Result")
ALLOCATION_FAILED = (
    "out of memory",  # the driver's own, where torch does not give it a class
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # Windows
)
FEW_IMAGES = 2
"""Micro-batch at which repeating layers (`block`) comes before fewer images: BatchNorm needs some of them."""


@dataclass(frozen=True)
class Lowering:
    """One change of the settings, for log and checkpoint."""

    step: int
    """Optimizer steps taken before."""
    cause: str
    micro_batch_size: int
    recompute: str


@dataclass(frozen=True)
class RecoveryHooks:
    """What a run adds to the recovery from running out of memory."""

    on_recovery: Callable[[str], object] = lambda sentence: None
    """Told of every recovery, in a sentence."""
    what_fits: Callable[[], str] = lambda: "lower data.image_size or take a smaller model.network"
    """Says what would fit, once nothing can be lowered any more."""


@dataclass
class MemorySettings:
    """What decides how much memory a step needs: set by the plan, lowered when reality disagrees."""

    network: nn.Module
    """Has `recompute` applied to it."""
    batch_size: int
    """The effective batch, which stays."""
    micro_batch_size: int
    """Images on the device at a time."""
    recompute: Level = "none"
    recompute_layers: dict[int, Level] = field(default_factory=dict)
    fused_kernels: bool = False
    """Whether layers that recompute take Triton kernels."""
    hooks: RecoveryHooks = RecoveryHooks()
    history: list[Lowering] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Remember what the settings were, to know in a later run whether the user has changed them."""
        self._configured = self._values()

    def lower(self, cause: str, step: int) -> str:
        """Go one step down: `elementwise`, then smaller micro-batches to 2, then `block`, then single images.

        Each step takes about half of the activations away or more, so there are at most log2(micro-batch) + 2. The
        recompute level comes first because it does not change the numbers, while BatchNorm sees each micro-batch alone.

        Returns:
            A sentence that says what has changed.

        Raises:
            TrainingError: If nothing is left to lower.
        """
        before = self._text()
        # Layers that normalise together with other devices cannot be repeated by one of them.
        can_recompute = not any(isinstance(module, nn.SyncBatchNorm) for module in self.network.modules())
        if can_recompute and self.recompute == "none":
            self._set(self.micro_batch_size, "elementwise")
        elif self.micro_batch_size > FEW_IMAGES:
            self._set((self.micro_batch_size + 1) // 2, self.recompute)
        elif can_recompute and self.recompute != "block":
            self._set(self.micro_batch_size, "block")
        elif self.micro_batch_size > 1:
            self._set(1, self.recompute)
        else:
            single = f"a single image at recompute {self.recompute}"
            raise TrainingError(f"{cause}: {single} is still too much: {self.hooks.what_fits()}")
        self.history.append(Lowering(step, cause, self.micro_batch_size, self.recompute))
        sentence = f"{cause}: {before} becomes {self._text()}; the effective batch stays {self.batch_size}"
        log.warning(sentence)
        return sentence

    def agree_over_ranks(self, ranks: Ranks) -> None:
        """Take the most frugal settings of all ranks, which may have planned for different devices."""
        plans = ranks.gather(self._values())
        if all(plan == plans[0] for plan in plans):
            return
        by_layer = [level for plan in plans for level in plan["recompute_layers"].items()]
        self.recompute_layers = {layer: _leanest(lv for n, lv in by_layer if n == layer) for layer, _ in by_layer}
        self._set(min(plan["micro_batch_size"] for plan in plans), _leanest(plan["recompute"] for plan in plans))
        log.info("the devices have planned differently: all take %s", self._text())

    @property
    def settings(self) -> tuple[object, ...]:
        """What the kernels of a micro-step depend on, beside its size."""
        return self.recompute, *sorted(self.recompute_layers.items())

    def state_dict(self) -> dict[str, Any]:
        """The settings in force, those of the configuration, and how they came to differ, in plain values."""
        return {
            "configured": self._configured,
            "current": self._values(),
            "history": [asdict(lowering) for lowering in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume with lowered settings, unless the configuration has been changed since: then it is obeyed."""
        self.history = [Lowering(**lowering) for lowering in state["history"]]
        if state["configured"] != self._configured:
            return
        self.recompute_layers = dict(state["current"]["recompute_layers"])
        self._set(state["current"]["micro_batch_size"], state["current"]["recompute"])

    def _values(self) -> dict[str, Any]:
        return {
            "micro_batch_size": self.micro_batch_size,
            "recompute": self.recompute,
            "recompute_layers": dict(self.recompute_layers),
        }

    def _set(self, micro_batch_size: int, recompute: Level) -> None:
        self.micro_batch_size = micro_batch_size
        if recompute == "block":
            self.recompute_layers = {}  # which had only raised some layers to it
        self.recompute = recompute
        apply_recompute(self.network, recompute, self.recompute_layers, self.fused_kernels)

    def _text(self) -> str:
        return f"micro-batch {self.micro_batch_size} at recompute {self.recompute}"


def _leanest(levels: Iterable[Level]) -> Level:
    return max(levels, key=get_args(Level).index)


def retry(
    attempt: Callable[[], Result],
    lower: Callable[[str], object],
    undo: Callable[[], object] = lambda: None,
    agree: Callable[[bool], bool] = lambda failed: failed,
) -> Result:
    """Call ``attempt`` until memory suffices, each time with what the failed attempt held freed.

    Args:
        attempt: May run out of memory.
        lower: Told why; makes the next attempt need less. Raises if it cannot.
        undo: Puts back what a failed attempt has changed.
        agree: Whether an attempt failed on any rank: then all lower, and those that failed try again.
    """
    result: list[Result] = []
    while True:
        cause = ""
        if not result:
            result, cause = caught_out_of_memory(attempt)
        if not agree(not result):
            return result[0]
        if not result:
            undo()
            free_memory()
        lower(cause or "another device ran out of memory")


def caught_out_of_memory(attempt: Callable[[], Result]) -> tuple[list[Result], str]:
    """The result of ``attempt`` in a list, which is empty if memory ran out; and then the cause, in a sentence.

    All that a failed attempt has held is free on return: the error, which holds it through its traceback, is gone.
    """
    try:
        return [attempt()], ""
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return [], _in_one_sentence(error)


def in_parts(batch: Batch, part_size: int, work: Callable[[Batch], object]) -> int:
    """Do ``work``, which either does all of it or nothing, on a batch in host memory, in parts that fit.

    Returns:
        Images in a part that fits: ``part_size``, or less if memory ran out.

    Raises:
        TrainingError: If a single image does not fit.
    """
    parts = batch.split(part_size)
    sizes = [part_size]

    def do_the_rest() -> None:
        while parts:
            work(parts[0])
            del parts[0]

    def halve(cause: str) -> None:
        if sizes[-1] == 1:
            raise TrainingError(f"{cause}: validating a single image is too much: lower data.image_size")
        sizes.append((sizes[-1] + 1) // 2)
        log.warning("%s: validation continues with %d images at a time instead of %d", cause, sizes[-1], sizes[-2])
        parts[:] = [smaller for part in parts for smaller in part.split(sizes[-1])]

    retry(do_the_rest, halve)
    return sizes[-1]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the device's or the host's, did not suffice, or was raised on account of that.

    Leaving a context may fail after memory has run out in it, as ending the capture of a CUDA graph does.
    """
    return any(_says_out_of_memory(each) for each in _with_those_before(error))


def _says_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in ALLOCATION_FAILED)


def _with_those_before(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that were being handled when it was raised."""
    while error is not None:
        yield error
        error = error.__context__


def free_memory() -> None:
    """Give everything that is not in use back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_one_sentence(error: BaseException) -> str:
    """``CUDA out of memory (tried to allocate 2.00 GiB)``, out of torch's long message."""
    message = next(str(each) for each in _with_those_before(error) if _says_out_of_memory(each))
    sentences = " ".join(message.split()).split(". ")
    wanted = next((s.strip(". ") for s in sentences if s.lower().startswith("tried to allocate")), None)
    return f"{sentences[0].rstrip('.')} ({wanted[0].lower()}{wanted[1:]})" if wanted else sentences[0].rstrip(".")
