"""Shared by all tests: one torch thread, a cache folder that is thrown away, Triton's interpreter without a GPU."""

from __future__ import annotations

import os

NUM_THREADS = os.environ.get("YOLOFIT_TEST_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = NUM_THREADS  # before torch, and for processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOFIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(int(NUM_THREADS))
