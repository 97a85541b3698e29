from __future__ import annotations

import pytest
import torch

from engine.errors import ConfigError
from engine.training.precision import autocast, build_scaler, check_precision
from tests.helpers.training import make_network, make_step, make_window

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_check_precision__rejects_fp16_on_cpu() -> None:
    with pytest.raises(ConfigError, match=r"^model\.precision: fp16: .* Use bf16 or fp32\.$"):
        check_precision("fp16", CPU)


def test_check_precision__rejects_bf16_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 2080")
    with pytest.raises(ConfigError, match=r"^model\.precision: bf16: RTX 2080 has no bf16 units\. Use fp16\.$"):
        check_precision("bf16", CUDA)
    check_precision("fp16", CUDA)


def test_check_precision__accepts_what_works_everywhere() -> None:
    check_precision("fp32", CPU)
    check_precision("bf16", CPU)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast__sets_the_dtype_of_convolutions(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        output = torch.nn.Conv2d(1, 1, 1)(torch.rand(1, 1, 2, 2))
    assert output.dtype == dtype


def test_build_scaler__works_only_for_fp16() -> None:
    assert [build_scaler(p, CPU).is_enabled() for p in ("fp32", "bf16", "fp16")] == [False, False, True]


def test_build_scaler__loses_few_windows_while_it_finds_the_scale_of_a_new_network() -> None:
    """A new YOLO11l needs 2**7 at most. docs/troubleshooting.md promises a few skips; ten in a row end a run."""
    network, scaler = make_network(), build_scaler("fp16", CPU)
    step = make_step(network, scaler=scaler)
    weight = network.model[0].conv.weight
    weight.register_hook(lambda gradient: gradient * (float("inf") if scaler.get_scale() > 2.0**7 else 1.0))
    for seed in range(5):
        step.run(make_window([2, 1], seed=seed))
    step.settle()
    assert step.guard.num_skipped <= 3
