"""The processes of a run, one for each device: Lightning starts and joins them, yolofit's own loop adds up gradients.

Before they are joined, all say whether they could begin: what keeps one of them from it ends all, with its one line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import nn

from engine.errors import USER_ERRORS, ConfigError, SaidElsewhere, TrainingError
from engine.machine.devices import cluster_environment
from engine.training.ranks import TIMEOUT, Ranks, all_present, is_parallel

OWN_NAMES = ("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
"""Strategies of Lightning for which ours stands in: one process for each device, each with the whole network."""
FAREWELL_SECONDS = 5.0
_store: Any = None  # where the processes of this run leave word, once they have met


class WindowParallel(DDPStrategy):
    """Processes as ``ddp`` has them, without torch's wrapper around the network.

    The wrapper keeps a second copy of all gradients, and sends BatchNorm's statistics around in every forward pass.
    Here gradients are added up once per window: see `engine.training.accumulation`. What Lightning itself has to agree
    on travels over the host, where a process that has gone is noticed at once.
    """

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_distributed(self) -> None:
        """Meet, then connect."""
        self.set_world_ranks()
        assert self.cluster_environment is not None and isinstance(self._launcher, _Launcher)
        meet(self.cluster_environment, children=self._launcher.procs)
        super().setup_distributed()

    def configure_ddp(self) -> None:
        """Have all ranks begin with the first one's weights."""
        assert self.model is not None
        share_state(self.model)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks."""
        Ranks().any(False)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """A plain value of one rank, on all."""
        return Ranks().gather(obj)[src]


class _Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine.

    Lightning's own kills this one five seconds after another has ended, whatever it is writing then. Here a process
    that has gone is noticed when the others next agree on something.
    """

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start them, then call ``function``."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ["LOCAL_WORLD_SIZE"] = str(self.num_processes)
            self._call_children_scripts()
        return function(*args, **kwargs)


def strategy_for(name: Any, num_processes: int) -> WindowParallel | str:
    """What Lightning's ``trainer.strategy`` becomes.

    Args:
        name: As configured.
        num_processes: Devices of the run, over all machines.

    Raises:
        ConfigError: For a strategy that shares out other things than windows, or if torchrun has started another
            number of processes.
    """
    if name not in ("auto", *OWN_NAMES):
        raise ConfigError(
            f"trainer.strategy: {name}: yolofit shares windows out among the devices itself, and weights are too small "
            "to be shared out (docs/distributed.md): leave it out"
        )
    if TorchElasticEnvironment.detect():
        _check_torchrun(num_processes)
    return WindowParallel() if num_processes > 1 or name != "auto" else "auto"


def _check_torchrun(num_processes: int) -> None:
    started, here = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if started != num_processes:
        raise ConfigError(
            f"trainer.devices: torchrun has started {started} processes, the configuration asks for {num_processes}: "
            f"add --trainer.devices {here} --trainer.num_nodes {started // here}"
        )


def check_images_per_device(batch_size: int, num_processes: int) -> None:
    """Refuse a window that could never give every device an image.

    Raises:
        ConfigError: Naming the keys.
    """
    if 0 < batch_size < num_processes:
        raise ConfigError(
            f"data.batch_size: {batch_size}: is less than the {num_processes} devices that share it: raise it, or "
            "lower trainer.devices"
        )


def share_state(module: nn.Module) -> None:
    """Replace all parameters and buffers by those of the first rank."""
    if not is_parallel():
        return
    with all_present():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


def meet(environment: ClusterEnvironment, failure: str = "", children: list[Popen] | None = None) -> None:
    """Wait until every process is there, and end the run on all of them if one cannot begin.

    Args:
        environment: Who has started the processes.
        failure: Why this one cannot begin.
        children: Processes that this one has started.

    Raises:
        ConfigError: On the first process, with the first failure.
        SaidElsewhere: On the others, if there is one.
        TrainingError: If a process does not come.
    """
    global _store
    rank, size = environment.global_rank(), environment.world_size()
    if size == 1 or _store is not None:
        return
    with all_present():
        _store = _open_store(environment, is_host=rank == 0)
        _store.set(f"begins {rank}", failure)
        names = [f"begins {other}" for other in range(size)]
        _wait(lambda: _store.check(names), TIMEOUT.total_seconds(), children or [])
        failures = [text.decode() for text in _store.multi_get(names)]
    failed = [other for other, text in enumerate(failures) if text]
    if not failed:
        return
    farewell(rank, size)
    if rank:
        raise SaidElsewhere
    text = failures[failed[0]]
    raise ConfigError(text if failed[0] == 0 or len(failed) == size else f"process {failed[0]} of {size}: {text}")


@contextmanager
def beginning_together() -> Iterator[None]:
    """Tell the other processes of a run, if there are some already, what keeps this one from beginning."""
    try:
        yield
    except USER_ERRORS as error:
        environment = cluster_environment()
        if environment.creates_processes_externally:
            meet(_numbered(environment), failure=str(error))
        raise


@contextmanager
def speaking_once() -> Iterator[None]:
    """Keep an error that all processes have at the same time from being printed by each of them."""
    try:
        yield
    except USER_ERRORS as error:
        if _store is None or not is_parallel():
            raise
        rank, size = dist.get_rank(), dist.get_world_size()
        is_first = _first_to_say(str(error))
        farewell(rank, size)
        if not is_first:
            raise SaidElsewhere from error
        raise


def farewell(rank: int, size: int) -> None:
    """Leave; the first process, in which the store is, waits a moment until all have read what is there."""
    try:
        _store.add("left", 1)
        if rank == 0:
            _wait(lambda: _store.add("left", 0) == size, FAREWELL_SECONDS, [])
    except (dist.DistError, TrainingError):
        return  # others are gone already, or busy


def _open_store(environment: ClusterEnvironment, is_host: bool) -> dist.Store:
    """The store through which torch will join the processes; torchrun's agent has one already."""
    is_host = is_host and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    place = environment.main_address, environment.main_port
    store = dist.TCPStore(*place, is_master=is_host, timeout=TIMEOUT, wait_for_workers=False, multi_tenant=True)
    return dist.PrefixStore("yolofit", store)


def _first_to_say(text: str) -> bool:
    try:
        return _store.add(f"said {text}", 1) == 1
    except dist.DistError:
        return True


def _numbered(environment: ClusterEnvironment) -> ClusterEnvironment:
    """Lightning's own environment learns its numbers from the strategy, which a process that fails early has not."""
    if isinstance(environment, LightningEnvironment):
        size = int(os.environ.get("WORLD_SIZE", 1))
        num_before = environment.node_rank() * int(os.environ.get("LOCAL_WORLD_SIZE", size))
        environment.set_world_size(size)
        environment.set_global_rank(num_before + environment.local_rank())
    return environment


def _wait(is_done: Callable[[], bool], seconds: float, children: list[Popen]) -> None:
    until = time.monotonic() + seconds
    while not is_done():
        if any(child.poll() for child in children) or time.monotonic() > until:
            raise TrainingError("another process of this run has not begun: its own message says why")
        time.sleep(0.05)
