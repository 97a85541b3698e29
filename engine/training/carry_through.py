"""Finish the part of a step that cannot be repeated, even if memory runs out in it.

The forward and backward passes of a window can be undone and repeated. The rest of a step cannot: gradients, weights,
weight average and statistics change in place one after the other, and copies of all of them would double their memory.
Therefore the result of every operation is kept in a log. When memory runs out, the step makes room and runs the same
Python code again. Operations that are in the log are not run again; the log returns their results.

This relies on two properties. An operation allocates before it changes anything, so an operation that ran out of memory
has changed nothing. The code calls the same operations each time, because it does not read values from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode

from engine.training.out_of_memory import caught_out_of_memory, free_memory

Result = TypeVar("Result")


def carry_through(work: Callable[[], Result], make_room: Callable[[str], object]) -> Result:
    """Run ``work`` to its end and each of its operations once, however often memory runs out.

    Args:
        work: Calls the same operations in the same order each time.
        make_room: Called with the cause after each failure; releases memory, or raises after too many failures.
    """
    log = _OperationLog()
    while True:
        result, cause = caught_out_of_memory(lambda: log.run(work))
        if not cause:
            return result[0]
        make_room(cause)
        free_memory()


class _OperationLog(TorchDispatchMode):
    """Runs each operation once and returns its logged result when the same work calls it again."""

    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, Any]] = []
        self._position = 0

    def run(self, work: Callable[[], Result]) -> Result:
        """Call ``work`` from its beginning."""
        self._position = 0
        with self:
            return work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, or return its logged result."""
        # Views change nothing, and autograd needs new ones. The profiler closes its ranges when an operation fails.
        if func.is_view or func.namespace == "profiler":
            return func(*args, **(kwargs or {}))
        if self._position == len(self._done):
            self._done.append((func, func(*args, **(kwargs or {}))))
        done, result = self._done[self._position]
        assert done is func, f"{func} was called in place of {done}"
        self._position += 1
        return result
