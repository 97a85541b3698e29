"""Whole runs of ``engine.fit`` in processes of their own, forked from one that has imported everything already.

A run that is killed twenty times would otherwise spend most of the time in importing torch and Lightning twenty times.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.errors import run_command
from engine.fit import main as fit
from engine.loop.monitor import MemoryMonitor
from engine.loop.reporter import RunReporter

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


@dataclass
class RunProcess:
    """A run in the background, in a session of its own together with its workers."""

    process: BaseProcess
    output: Path
    """What it prints."""

    @property
    def pid(self) -> int:
        """Of the training process, and of its group."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.is_alive()

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status, minus the number of a signal that killed it; None if it still runs after ``seconds``."""
        self.process.join(seconds)
        return self.process.exitcode

    def signal_group(self, number: int) -> None:
        """To the training process and its workers at once, as Ctrl-C in a terminal does."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """As a power cut: the process and its workers."""
        self.signal_group(signal.SIGKILL)
        self.wait()


def make_boards(tmp_path_factory: pytest.TempPathFactory, num_train: int, num_val: int) -> Path:
    """A small data set of drawn boards; its ``data.yaml``."""
    folder = tmp_path_factory.mktemp("data") / "boards"
    return generate_pcb_dataset(folder, SyntheticConfig(num_train=num_train, num_val=num_val, image_size=96))


def quickstart_arguments(
    data_yaml: Path, folder: Path, image_size: int, batch_size: int, micro_batch_size: int, *more: str
) -> list[str]:
    """Arguments of ``engine.fit`` for a short run."""
    return [
        "--config=configs/quickstart.yaml",
        f"--data.root={data_yaml}",
        f"--run.folder={folder}",
        f"--data.image_size={image_size}",
        f"--data.batch_size={batch_size}",
        f"--data.micro_batch_size={micro_batch_size}",
        *more,
    ]


def run_together(work: Callable[..., None], args: tuple, num_processes: int) -> None:
    """Run ``work(rank, *args)`` in several processes, and wait for their end; the first error is raised."""
    torch.multiprocessing.start_processes(work, args, num_processes, start_method="forkserver")


def start_run(args: list[str], output: Path, **environment: str) -> RunProcess:
    """Start ``python -m engine.fit`` with these arguments; no pictures are drawn."""
    environment.setdefault("YOLOFIT_CACHE", os.environ.get("YOLOFIT_CACHE", str(output.parent / "cache")))
    process = _context.Process(target=_run, args=(args, output, environment))
    process.start()
    return RunProcess(process, output)


def start_ranks(
    num_ranks: int, args: list[str], folder: Path, more: dict[int, list[str]] | None = None
) -> list[RunProcess]:
    """The processes that ``torchrun --nproc-per-node`` starts, with the environment that it gives them.

    Args:
        num_ranks: How many.
        args: Of ``engine.fit``.
        folder: For what they print.
        more: Further arguments of single ranks, which makes them differ.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    shared |= {"LOCAL_WORLD_SIZE": str(num_ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    args = [*args, f"--trainer.devices={num_ranks}"]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(num_ranks)]
    return [
        start_run([*args, *(more or {}).get(rank, [])], folder / f"rank{rank}.txt", **environment)
        for rank, environment in enumerate(ranks)
    ]


def _end_with_the_tests() -> None:
    """A test that fails leaves its runs behind: they end when the process that started them does."""
    tests = multiprocessing.parent_process()
    assert tests is not None
    tests.join()
    os.killpg(0, signal.SIGKILL)


def _run(args: list[str], output: Path, environment: dict[str, str]) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of the workers, as in a run from the command line
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment
    rank_zero_only.rank = int(environment.get("RANK", 0))  # Lightning has read it when it was imported
    torch.set_num_threads(1)
    RunReporter._draw = RunReporter._finish = MemoryMonitor._report = lambda *_: None  # most of a short run's time
    run_command(lambda _: fit(args))


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, average, optimizer and step counts in ``last.ckpt``, flattened."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state = dict(checkpoint["state_dict"])
    for index, values in checkpoint["optimizer_states"][0]["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    state["num_steps_taken"] = torch.tensor(checkpoint["yolofit"]["step"]["num_steps_taken"])
    state["epoch"] = torch.tensor(checkpoint["epoch"])
    return state


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Bit by bit."""
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def rows_of(folder: Path) -> list[dict[str, str]]:
    """``metrics.csv``, without what depends on the clock."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = ("epoch", "step", "train/", "val/")
    return [{key: value for key, value in row.items() if key.startswith(kept)} for row in rows]
