"""The processes of a run, one for each device: Lightning starts and connects them, yolofit adds up their gradients.

Before they connect, each process reports whether it can begin. If one cannot begin, its error ends the run on all
processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import nn

from engine.errors import USER_ERRORS, ConfigError, SaidElsewhere, TrainingError
from engine.machine.devices import cluster_environment
from engine.training.ranks import TIMEOUT, Ranks, all_present, is_parallel

OWN_NAMES = ("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
"""Lightning's strategies that `WindowParallel` replaces: one process for each device, each with the whole network."""
FAREWELL_SECONDS = 5.0


class WindowParallel(DDPStrategy):
    """The processes of ``ddp`` without torch's wrapper around the network.

    The wrapper keeps a second copy of all gradients and broadcasts BatchNorm's statistics in every forward pass.
    yolofit adds up gradients once per window (`engine.training.accumulation`). Lightning's own messages travel over
    the host, which notices a lost process at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store: dist.Store | None = None
        """Holds the messages of the processes to each other; None before they have met."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_distributed(self) -> None:
        """Wait for all processes, then connect them."""
        self.set_world_ranks()
        assert self.cluster_environment is not None and isinstance(self._launcher, _Launcher)
        if self.store is None:
            self.store = meet(self.cluster_environment, children=self._launcher.procs)
        super().setup_distributed()

    def configure_ddp(self) -> None:
        """Copy the weights of the first rank to all ranks."""
        assert self.model is not None
        share_state(self.model)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks."""
        Ranks().any(False)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return the plain value of rank ``src`` on all ranks."""
        return Ranks().gather(obj)[src]


class _Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine.

    Lightning's launcher kills this process five seconds after another one has ended, even while it writes a file.
    With this launcher the next agreement between the processes notices the lost one.
    """

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, then call ``function``."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ["LOCAL_WORLD_SIZE"] = str(self.num_processes)
            self._call_children_scripts()
        return function(*args, **kwargs)


def strategy_for(name: Any, num_processes: int) -> WindowParallel | str:
    """Return the strategy for ``trainer.strategy``.

    Args:
        name: ``trainer.strategy`` as configured.
        num_processes: Devices of the run on all machines.

    Raises:
        ConfigError: If the strategy distributes anything but windows, or torchrun has started another number of
            processes.
    """
    if name not in ("auto", *OWN_NAMES):
        raise ConfigError(
            f"trainer.strategy: {name}: yolofit shares windows out among the devices itself, and the weights are too "
            "small to be worth sharding (docs/distributed.md): leave it out"
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
    """Check that a window has an image for every device.

    Raises:
        ConfigError: If it has not.
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


def meet(environment: ClusterEnvironment, failure: str = "", children: Sequence[Popen] = ()) -> dist.Store | None:
    """Wait until every process has arrived; end the run on all of them if one cannot begin.

    Args:
        environment: Knows the processes.
        failure: Why this process cannot begin; empty if it can.
        children: Processes that this one has started.

    Returns:
        The store through which the processes exchange messages; None if there is only one process.

    Raises:
        ConfigError: On the first process, with the first failure.
        SaidElsewhere: On the other processes, if one cannot begin.
        TrainingError: If a process does not arrive.
    """
    rank, size = environment.global_rank(), environment.world_size()
    if size == 1:
        return None
    with all_present():
        store = _open_store(environment, is_host=rank == 0)
        store.set(f"begins {rank}", failure)
        names = [f"begins {other}" for other in range(size)]
        _wait(lambda: store.check(names), TIMEOUT.total_seconds(), children)
        failures = [text.decode() for text in store.multi_get(names)]
    failed = [other for other, text in enumerate(failures) if text]
    if not failed:
        return store
    _leave(store, rank, size)
    if rank:
        raise SaidElsewhere
    text = failures[failed[0]]
    raise ConfigError(text if failed[0] == 0 or len(failed) == size else f"process {failed[0]} of {size}: {text}")


@contextmanager
def beginning_together() -> Iterator[None]:
    """Tell the processes that already run why this one cannot begin."""
    try:
        yield
    except USER_ERRORS as error:
        environment = cluster_environment()
        if environment.creates_processes_externally:
            meet(_numbered(environment), failure=str(error))
        raise


@contextmanager
def speaking_once(strategy: Strategy) -> Iterator[None]:
    """Let only one process print an error that all processes have at the same time."""
    try:
        yield
    except USER_ERRORS as error:
        store = strategy.store if isinstance(strategy, WindowParallel) else None
        if store is None or not is_parallel():
            raise
        is_first = _is_first_to_say(store, str(error))
        _leave(store, dist.get_rank(), dist.get_world_size())
        if not is_first:
            raise SaidElsewhere from error
        raise


def _leave(store: dist.Store, rank: int, size: int) -> None:
    """Leave the store; the first process hosts it and therefore waits a moment until all have read it."""
    try:
        store.add("left", 1)
        if rank == 0:
            _wait(lambda: store.add("left", 0) == size, FAREWELL_SECONDS)
    except (dist.DistError, TrainingError):
        return  # the others have ended or are busy


def _open_store(environment: ClusterEnvironment, is_host: bool) -> dist.Store:
    """Open the store through which torch will connect the processes; torchrun's agent may host it already."""
    is_host = is_host and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    place = environment.main_address, environment.main_port
    store = dist.TCPStore(*place, is_master=is_host, timeout=TIMEOUT, wait_for_workers=False, multi_tenant=True)
    return dist.PrefixStore("yolofit", store)


def _is_first_to_say(store: dist.Store, text: str) -> bool:
    try:
        return store.add(f"said {text}", 1) == 1
    except dist.DistError:
        return True


def _numbered(environment: ClusterEnvironment) -> ClusterEnvironment:
    """Set rank and size, which Lightning's environment gets from the strategy, and a failed process has none."""
    if isinstance(environment, LightningEnvironment):
        size = int(os.environ.get("WORLD_SIZE", 1))
        num_before = environment.node_rank() * int(os.environ.get("LOCAL_WORLD_SIZE", size))
        environment.set_world_size(size)
        environment.set_global_rank(num_before + environment.local_rank())
    return environment


def _wait(is_done: Callable[[], bool], seconds: float, children: Sequence[Popen] = ()) -> None:
    until = time.monotonic() + seconds
    while not is_done():
        if any(child.poll() for child in children) or time.monotonic() > until:
            raise TrainingError("another process of this run has not begun: its own message says why")
        time.sleep(0.05)
