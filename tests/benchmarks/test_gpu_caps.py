from __future__ import annotations

import common
import gpu_caps
import gpu_steps
import pytest
import torch

from engine.training.step import TrainingStep


@pytest.mark.parametrize("answer", [0, 1, 7, 30, 64])
@pytest.mark.parametrize("guess", [0, 1, 8, 29, 64, 100])
def test_largest__is_found_from_any_guess(answer: int, guess: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= answer

    assert gpu_caps.largest(fits, guess, most=64) == answer
    assert len(tried) == len(set(tried)) <= 13 and min(tried) >= 1 and max(tried) <= 64
    assert answer in (0, *tried) and min(answer + 1, 64) in tried


@pytest.mark.parametrize("rival", ["none", "block"])
def test_trials__of_ours_end_where_memory_runs_out(rival: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(self: TrainingStep, *_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(gpu_steps, "NETWORK", "yolo11n")
    window = common.random_window(1, 64)
    assert gpu_caps._take_steps(rival, window) is None
    monkeypatch.setattr(TrainingStep, "_forward_backward", run_out)
    error = gpu_caps._take_steps(rival, window)
    assert error is not None and "out of memory" in error and "another error" not in error
