"""The copy of the next micro-batch starts before the device computes with the current one."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from data.loading.batch import Batch
from engine.training.copy_ahead import copied_ahead
from tests.helpers.training import make_window

CPU = torch.device("cpu")


@pytest.mark.parametrize(("num_images", "size"), [(1, 4), (4, 4), (9, 4), (5, 1)])
def test_copied_ahead__gives_every_micro_batch_once_in_order(num_images: int, size: int) -> None:
    window = make_window([2] * num_images)
    copied = list(copied_ahead(window.split(size), CPU))
    assert [len(part) for part in copied] == [len(part) for part in window.split(size)]
    assert torch.equal(torch.cat([part.images for part in copied]), window.images)


def test_copied_ahead__is_one_ahead_and_never_two(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    copy = Batch.to
    monkeypatch.setattr(Batch, "to", lambda self, *args, **more: (events.append("copy"), copy(self, *args, **more))[1])
    for _ in copied_ahead(make_window([1] * 4).split(1), CPU):
        events.append("use")
    assert events == ["copy", "copy", "use", "copy", "use", "copy", "use", "use"]


def test_copied_ahead__on_a_gpu_waits_for_the_copy_it_uses_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses streams that only log their calls in the order of the host."""
    events: list[str] = []
    copies = SimpleNamespace(device="cuda")
    computes = SimpleNamespace(wait_stream=lambda stream: events.append("wait"))

    @contextmanager
    def on_stream(stream: object):
        assert stream is copies
        events.append("copy")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copies)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computes)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(Batch, "to", lambda self, device, non_blocking: self if non_blocking else None)
    monkeypatch.setattr(Batch, "tensors", [SimpleNamespace(record_stream=lambda stream: events.append("keep"))])
    for _ in copied_ahead(make_window([1] * 3).split(1), torch.device("cuda")):
        events.append("use")
    # A wait covers all copies queued before it, so the next copy must be queued after the wait.
    expected = "wait copy keep wait copy keep use wait copy keep use wait use"
    assert events == expected.split()
