"""A checkpoint is either there and whole, or the one before it is."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigError
from engine.run.checkpoint_io import SafeCheckpointIO, previous_of, verify_checkpoint, write_checkpoint
from tests.helpers.faults import FULL, full_disk


def checkpoint(value: int) -> dict:
    return {"weights": torch.full((1000,), value), "epoch": value}


def read(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


def test_write__keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for value in range(3):
        write_checkpoint(checkpoint(value), path)
    assert read(path) == 2
    assert read(previous_of(path)) == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]


@pytest.mark.parametrize("function", ["fsync", "replace", "link"])
def test_write__cut_off_anywhere_leaves_a_whole_checkpoint(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1), path)

    def power_cut(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, power_cut)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(checkpoint(2), path)
    monkeypatch.undo()
    verify_checkpoint(path, "--ckpt_path")
    assert read(path) == 1
    write_checkpoint(checkpoint(3), path)
    assert read(path) == 3


def test_write__flushes_the_folder_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut soon after could take the new name back, and with it the newest checkpoint."""
    path, flushed, fsync = tmp_path / "last.ckpt", [], os.fsync
    write_checkpoint(checkpoint(1), path)

    def note(descriptor: int) -> None:
        fsync(descriptor)
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            flushed.append(read(path))

    monkeypatch.setattr(os, "fsync", note)
    write_checkpoint(checkpoint(2), path)
    assert flushed == [2]


def test_save__with_a_full_disk_warns_and_keeps_what_was_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    io, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    with full_disk(at_bytes=2000):
        io.save_checkpoint(checkpoint(2), path)
    assert caplog.messages == [f"{path}: cannot be written ({FULL}): the previous file is unchanged"]
    assert list(io.failures.values()) == caplog.messages
    assert read(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    io.save_checkpoint(checkpoint(3), path)
    assert not io.failures
    assert read(path) == 3


def test_save__an_error_in_the_midst_of_writing_is_the_one_that_arrives(tmp_path: Path) -> None:
    """Not one of torch's ZIP writer about where it is; nor is it tried again, behind what the file holds already."""

    class Unpicklable:
        attempts = 0

        def __reduce__(self) -> None:
            self.attempts += 1
            raise RuntimeError("in the midst")

    content = Unpicklable()
    with pytest.raises(RuntimeError, match=r"^in the midst$"):
        write_checkpoint({"weights": torch.ones(1000), "content": content}, tmp_path / "last.ckpt")
    assert content.attempts == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(12))
def test_load__notices_a_flipped_bit(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1), path)
    write_checkpoint(checkpoint(2), path)
    content = bytearray(path.read_bytes())
    start = content.index(torch.full((1000,), 2).numpy().tobytes())  # inside of the weights
    position = start + random.Random(seed).randrange(8000)
    content[position] ^= 1 << (seed % 8)
    path.write_bytes(bytes(content))
    with pytest.raises(ConfigError, match=r"is damaged .*: use .*last\.previous\.ckpt, the one before it"):
        SafeCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_load__notices_a_truncated_file(share: float, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ConfigError, match=r"last\.ckpt: is damaged .*: use another checkpoint"):
        SafeCheckpointIO().load_checkpoint(path)


def test_load__says_that_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--ckpt_path: .*none\.ckpt: no such file"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")


def test_load__names_the_one_before_if_the_newest_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1), path)
    path.rename(previous_of(path))
    with pytest.raises(ConfigError, match=r"last\.ckpt: no such file: use .*last\.previous\.ckpt, the one before it"):
        SafeCheckpointIO().load_checkpoint(path)


def test_load__of_a_folder_names_the_checkpoint_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder: give the last\.ckpt in it$"):
        verify_checkpoint(tmp_path, "--ckpt_path")
    write_checkpoint(checkpoint(1), tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match=r"is a folder: give .*/checkpoints/last\.ckpt$"):
        verify_checkpoint(tmp_path, "--ckpt_path")
