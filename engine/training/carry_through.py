"""What must not be done twice is carried through: memory may run out at any of its operations; the work resumes there.

The forward and backward passes of a window can be undone and done again. What follows cannot: gradients, weights, their
average and the statistics change in place, one after the other, and a copy of them all would take as much memory again.
So the result of every operation is written down. When memory runs out, room is made and the same Python code runs once
more; an operation that is done already is not done again, its result is taken from the notes.

That rests on one property of an operation: it allocates before it changes anything, so one that ran out of memory has
done nothing. And on one of the code: what it calls does not depend on values on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode

from engine.training.out_of_memory import caught_out_of_memory, free_memory

Result = TypeVar("Result")


def carry_through(work: Callable[[], Result], make_room: Callable[[str], object]) -> Result:
    """Do ``work`` to its end, each of its operations once, however often memory runs out in it.

    Args:
        work: Calls the same operations in the same order each time.
        make_room: Told why after each failure; gives memory back. Raises if that has happened too often.
    """
    notes = _Notes()
    while True:
        result, cause = caught_out_of_memory(lambda: notes.take_down(work))
        if not cause:
            return result[0]
        make_room(cause)
        free_memory()


class _Notes(TorchDispatchMode):
    """Does every operation that is called, but those that an earlier call of the same work has done."""

    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, Any]] = []
        self._position = 0

    def take_down(self, work: Callable[[], Result]) -> Result:
        """Call ``work`` from its beginning."""
        self._position = 0
        with self:
            return work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do an operation, or tell what it has given."""
        # Views cost nothing and change nothing, and autograd wants new ones; the profiler's brackets close on failure.
        if func.is_view or func.namespace == "profiler":
            return func(*args, **(kwargs or {}))
        if self._position == len(self._done):
            self._done.append((func, func(*args, **(kwargs or {}))))
        done, result = self._done[self._position]
        assert done is func, f"the second time {func} is called where it was {done}"
        self._position += 1
        return result
