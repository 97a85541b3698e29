"""The switches of the process: what they are set to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from engine.performance import set_backends


@pytest.fixture(autouse=True)
def switches_put_back() -> Iterator[None]:
    before = current()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[:2]
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[2:]


def current() -> tuple[bool, bool, bool, bool]:
    """TF32 in products, TF32 in convolutions, cuDNN's benchmark, cuDNN's determinism."""
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic


@pytest.mark.parametrize(
    ("precision", "deterministic", "expected"),
    [
        ("fp32", False, (True, True, True, False)),
        ("fp16", False, (False, False, True, False)),
        ("bf16", False, (False, False, True, False)),
        ("fp32", True, (False, False, False, True)),
        ("fp16", True, (False, False, False, True)),
    ],
)
def test_set_backends(precision: str, deterministic: bool, expected: tuple[bool, ...]) -> None:
    set_backends(precision, deterministic)
    assert current() == expected
