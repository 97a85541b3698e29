"""The command: what it writes over, and which options it refuses. `inference/test_export_formats.py` has the files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.export import main
from engine.inference.export_formats import SUFFIXES
from tests.helpers.checkpoints import Overfitted
from tests.helpers.faults import FULL, full_disk

pytestmark = pytest.mark.slow  # a short training comes first


@pytest.fixture(scope="module")
def folder(overfitted: Overfitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and one export beside it."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(overfitted.checkpoint, folder / "best.ckpt")
    main([f"--ckpt_path={folder / 'best.ckpt'}", "--format=safetensors"])
    return folder


def test_main__says_before_it_writes_over_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--ckpt_path={folder / 'best.ckpt'}", "--format=safetensors"]
    before = (folder / "best.safetensors").stat().st_mtime_ns
    message = f"--output: {folder / 'best.safetensors'}: exists: choose another file, or add --overwrite"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        main(arguments)
    assert (folder / "best.safetensors").stat().st_mtime_ns == before
    assert main([*arguments, "--overwrite"]) == folder / "best.safetensors"
    assert (folder / "best.safetensors").stat().st_mtime_ns > before


@pytest.mark.parametrize("file_format", SUFFIXES)
def test_main__a_full_disk_is_one_line_and_leaves_nothing(file_format: str, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "best"
    output.write_text("before")
    arguments = [f"--ckpt_path={folder / 'best.ckpt'}", f"--format={file_format}", f"--output={output}", "--overwrite"]
    with full_disk(at_bytes=2**20), pytest.raises(ConfigError, match=rf"best: cannot be written \({FULL}\)"):
        main(arguments)
    assert output.read_text() == "before"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nms"], "--nms: goes with --format onnx, not ultralytics"),
        (["--nms", "--format=onnx", "--conf=2", "--output=new.onnx"], "--conf: 2.0: must be between 0 and 1"),
        (["--nms", "--format=onnx", "--iou=-1", "--output=new.onnx"], "--iou: -1.0: must be between 0 and 1"),
        (["--output=/no/such/folder/best.pt"], "--output: /no/such/folder/best.pt: cannot be written"),
    ],
)
def test_main__rejects_wrong_options(arguments: list[str], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        main([f"--ckpt_path={folder / 'best.ckpt'}", *arguments])


def test_main__rejects_a_checkpoint_without_a_name() -> None:
    with pytest.raises(ConfigError, match=r"^--ckpt_path: is empty: give a path"):
        main(["--ckpt_path="])
