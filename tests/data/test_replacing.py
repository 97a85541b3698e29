"""A file is replaced as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.replacing import replacing


def test_replacing__shows_the_new_content_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing__leaves_the_old_content_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), replacing(path) as file:
        file.write(b"ne")
        raise OSError("the disk is full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing__two_writers_do_not_mix_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    with replacing(path, "-1") as first, replacing(path, "-2") as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
