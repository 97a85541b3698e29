from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from engine.errors import ConfigError
from engine.memory import allocator
from engine.memory.allocator import MARGIN_BYTES, cap_allocator, enable_expandable_segments, resolve_budget
from engine.memory.config import MemoryConfig
from engine.memory.probe import CUDA_CONTEXT_BYTES
from engine.memory.units import GIB, MIB
from tests.helpers import fake_gpu

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(allocator, "current_platform", lambda: "linux")
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
    return monkeypatch


def test_enable_expandable_segments__sets_the_environment(settings: pytest.MonkeyPatch) -> None:
    assert enable_expandable_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_enable_expandable_segments__keeps_other_settings(settings: pytest.MonkeyPatch, name: str) -> None:
    settings.setenv(name, "max_split_size_mb:128")
    assert enable_expandable_segments()
    assert os.environ[name] == "max_split_size_mb:128,expandable_segments:True"


def test_enable_expandable_segments__keeps_the_user_s_choice(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")
    assert not enable_expandable_segments()
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:False"


@pytest.mark.parametrize("platform", ["wsl", "windows", "other"])
def test_enable_expandable_segments__only_on_native_linux(settings: pytest.MonkeyPatch, platform: str) -> None:
    settings.setattr(allocator, "current_platform", lambda: platform)
    assert not enable_expandable_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == ""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch._C, "_accelerator_getAllocatorSettings"), reason="this torch does not tell")
def test_enable_expandable_segments__is_not_too_late_after_importing_torch() -> None:
    code = (
        "import torch; from engine.memory import allocator; allocator.current_platform = lambda: 'linux';"
        "allocator.enable_expandable_segments(); print(torch._C._accelerator_getAllocatorSettings())"
    )
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "expandable_segments:True"


@pytest.mark.parametrize(
    ("budget", "num_bytes"),
    [
        # 13 GiB are free; of the rest, torch holds 1 GiB and CUDA its context.
        ("auto", 14 * GIB + CUDA_CONTEXT_BYTES - MARGIN_BYTES),
        ("10GiB", 10 * GIB),
        ("0.5", 8 * GIB),
        (0.5, 8 * GIB),
    ],
)
def test_resolve_budget__of_a_gpu(monkeypatch: pytest.MonkeyPatch, budget: str | float, num_bytes: int) -> None:
    fake_gpu.install(monkeypatch)
    assert resolve_budget(MemoryConfig(budget=budget), CUDA) == num_bytes


def test_resolve_budget__of_a_cpu_is_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "ram_available_bytes", lambda: 20 * GIB)
    monkeypatch.setattr(allocator, "ram_limit_bytes", lambda: 32 * GIB)
    assert resolve_budget(MemoryConfig(), CPU) == 20 * GIB - MARGIN_BYTES
    assert resolve_budget(MemoryConfig(budget="0.25"), CPU) == 8 * GIB


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            "16GiB",
            r"^memory\.budget: 16GiB: 16\.0 GiB is more than the 14\.5 GiB free of this device's 16\.0 GiB\.",
        ),
        ("0.95", r"^memory\.budget: 0\.95: 15\.2 GiB is more than the 14\.5 GiB free"),
        ("16", r"^memory\.budget: 16: a number without unit is a fraction from 0 to 1\. Write a size as 14GiB\.$"),
        ("0", r"^memory\.budget: 0: a number without unit"),
        ("lots", r"^memory\.budget: lots: must be a positive size with its unit, such as 14GiB or 900MiB$"),
    ],
)
def test_resolve_budget__rejects(monkeypatch: pytest.MonkeyPatch, budget: str, message: str) -> None:
    fake_gpu.install(monkeypatch)
    with pytest.raises(ConfigError, match=message):
        resolve_budget(MemoryConfig(budget=budget), CUDA)


@pytest.mark.parametrize(
    ("budget_bytes", "fraction"), [(8 * GIB + CUDA_CONTEXT_BYTES, 0.5), (MIB, 0.0), (99 * GIB, 1.0)]
)
def test_cap_allocator__leaves_room_for_cuda(
    monkeypatch: pytest.MonkeyPatch, budget_bytes: int, fraction: float
) -> None:
    fake_gpu.install(monkeypatch)
    calls = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *call: calls.append(call))
    cap_allocator(CUDA, budget_bytes)
    assert calls == [(fraction, CUDA)]


def test_cap_allocator__does_nothing_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *call: calls.append(call))
    cap_allocator(CPU, GIB)
    assert not calls
