"""Recovery from running out of memory: repeat the same optimizer step with less on the device at a time.

A window is a transaction. If memory runs out in its forward or backward passes, its gradients are dropped, the running
statistics are restored, and the whole window is repeated with lower settings. The optimizer has not changed the weights
yet, so no image is lost or counted twice. `engine.training.carry_through` handles failures later in the step.

A caught error holds every tensor of the failed pass through its traceback. Therefore `caught_out_of_memory` leaves its
except block before anything is freed.
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
    "out of memory",  # errors of the driver for which torch has no class
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # Windows
)
FEW_IMAGES = 2
"""At this micro-batch, `block` comes before fewer images, because BatchNorm needs several images."""


@dataclass(frozen=True)
class Lowering:
    """One change of the settings, for the log and the checkpoint."""

    step: int
    """Number of optimizer steps taken before."""
    cause: str
    micro_batch_size: int
    recompute: str


@dataclass(frozen=True)
class RecoveryHooks:
    """Functions of a run that the recovery calls."""

    on_recovery: Callable[[str], object] = lambda sentence: None
    """Called with one sentence about every recovery."""
    what_fits: Callable[[], str] = lambda: "Lower data.image_size or take a smaller model.network."
    """Returns a remedy in one sentence for a run in which nothing can be lowered any more."""


@dataclass
class MemorySettings:
    """The settings on which the memory of a step depends: set by the plan, lowered when memory runs out."""

    network: nn.Module
    """`recompute` is applied to it."""
    batch_size: int
    """The effective batch, which never changes."""
    micro_batch_size: int
    """Images on the device at a time."""
    recompute: Level = "none"
    recompute_layers: dict[int, Level] = field(default_factory=dict)
    fused_kernels: bool = False
    """Whether layers that recompute use Triton kernels."""
    hooks: RecoveryHooks = RecoveryHooks()
    history: list[Lowering] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Keep the configured settings, so that a resumed run can tell whether the user changed them."""
        self._configured = self._values()

    def lower(self, cause: str, step: int) -> str:
        """Lower once: to `elementwise`, then to smaller micro-batches down to 2, then to `block`, then to 1 image.

        Each lowering about halves the activations or more, so there are at most log2(micro-batch) + 2. `elementwise`
        comes first because it does not change the numbers; BatchNorm makes them depend on the micro-batch.

        Returns:
            A sentence that says what changed.

        Raises:
            TrainingError: If nothing is left to lower.
        """
        before = self._text()
        # A rank cannot repeat a layer that normalises over all ranks.
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
            raise TrainingError(f"{cause}: {single} does not fit. {self.hooks.what_fits()}")
        self.history.append(Lowering(step, cause, self.micro_batch_size, self.recompute))
        sentence = f"{cause}: {before} becomes {self._text()}; the effective batch stays {self.batch_size}"
        log.warning(sentence)
        return sentence

    def agree_over_ranks(self, ranks: Ranks) -> None:
        """Take the lowest settings of all ranks, which may have planned for different devices."""
        plans = ranks.gather(self._values())
        if all(plan == plans[0] for plan in plans):
            return
        planned = [item for plan in plans for item in plan["recompute_layers"].items()]
        self.recompute_layers = {layer: _lowest(lv for other, lv in planned if other == layer) for layer, _ in planned}
        self._set(min(plan["micro_batch_size"] for plan in plans), _lowest(plan["recompute"] for plan in plans))
        log.info("the devices planned different settings: all take %s", self._text())

    @property
    def settings(self) -> tuple[object, ...]:
        """The recompute settings, on which the kernels of a micro-step depend."""
        return self.recompute, *sorted(self.recompute_layers.items())

    def state_dict(self) -> dict[str, Any]:
        """The current settings, the configured ones, and all lowerings, in plain values."""
        return {
            "configured": self._configured,
            "current": self._values(),
            "history": [asdict(lowering) for lowering in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore lowered settings, unless the user has changed the configuration since."""
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
            # The user may have set lower levels because a layer cannot be repeated.
            self.recompute_layers = {layer: lower for layer, lower in self.recompute_layers.items() if lower != "block"}
        self.recompute = recompute
        apply_recompute(self.network, recompute, self.recompute_layers, self.fused_kernels)

    def _text(self) -> str:
        return f"micro-batch {self.micro_batch_size} at recompute {self.recompute}"


def _lowest(levels: Iterable[Level]) -> Level:
    return max(levels, key=get_args(Level).index)


def retry(
    attempt: Callable[[], Result],
    lower: Callable[[str], object],
    undo: Callable[[], object] = lambda: None,
    agree: Callable[[bool], bool] = lambda failed: failed,
) -> Result:
    """Call ``attempt`` until memory suffices; free the memory of each failed attempt first.

    Args:
        attempt: May run out of memory.
        lower: Called with the cause; makes the next attempt need less memory, or raises.
        undo: Restores what a failed attempt changed.
        agree: Returns whether an attempt failed on any rank. Then all ranks lower, and those that failed try again.
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
    """Call ``attempt``; return its result in a list and "", or an empty list and the cause if memory ran out.

    On return nothing holds the tensors of a failed attempt.
    """
    try:
        return [attempt()], ""
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return [], _in_one_sentence(error)


def in_parts(batch: Batch, part_size: int, work: Callable[[Batch], object]) -> int:
    """Run ``work`` on parts of a batch in host memory, and halve the parts that do not fit.

    A failed call of ``work`` must have no effect.

    Returns:
        Images in a part that fits: at most ``part_size``.

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
            raise TrainingError(f"{cause}: validation of a single image does not fit. Lower data.image_size.")
        sizes.append((sizes[-1] + 1) // 2)
        log.warning("%s: validation continues with %d images at a time instead of %d", cause, sizes[-1], sizes[-2])
        parts[:] = [smaller for part in parts for smaller in part.split(sizes[-1])]

    retry(do_the_rest, halve)
    return sizes[-1]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that was being handled when it was raised, says that memory ran out.

    For example, the end of a CUDA graph's capture fails after memory ran out during the capture.
    """
    return any(_says_out_of_memory(each) for each in _chain(error))


def _says_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in ALLOCATION_FAILED)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def free_memory() -> None:
    """Return all unused memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_one_sentence(error: BaseException) -> str:
    """Shorten torch's message to ``CUDA out of memory (tried to allocate 2.00 GiB)``."""
    message = next(str(each) for each in _chain(error) if _says_out_of_memory(each))
    sentences = " ".join(message.split()).split(". ")
    wanted = next((s.strip(". ") for s in sentences if s.lower().startswith("tried to allocate")), None)
    return f"{sentences[0].rstrip('.')} ({wanted[0].lower()}{wanted[1:]})" if wanted else sentences[0].rstrip(".")
