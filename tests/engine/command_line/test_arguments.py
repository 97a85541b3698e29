from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from engine.errors import USER_ERRORS


def message_of(command: str, *args: str) -> str:
    with pytest.raises(USER_ERRORS) as caught:
        importlib.import_module(f"engine.{command}").main(list(args))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        ("predict", ["--ckpt", "x", "--src", "y"], "--ckpt: no such option: did you mean --ckpt_path?; --src: no such"),
        ("predict", ["--ckpt_path=a", "--source=b", "--tile=abc"], "--tile: abc: expected int"),
        ("predict", [], "--ckpt_path, --source: missing: python -m engine.predict "),
        ("predict", ["--imgsz=640"], "--imgsz: no such option: see --help"),
        ("export", ["--ckpt_path=a", "--form=onnx"], "--form: no such option: did you mean --format?"),
        ("export", ["--ckpt_path=a", "--format=tflite"], "--format: invalid choice: 'tflite' (choose from "),
        ("inspect", ["data.yaml", "--root=a"], "data.yaml: belongs to no option: python -m engine.inspect "),
        ("inspect", ["--root=~no-such-user/x"], "--root: ~no-such-user/x: there is no user no-such-user: "),
        ("new", ["--out=x"], "--out: no such option: did you mean --output?"),
        ("plan", ["--boxes-per-image=abc"], "--boxes-per-image: abc: expected int"),
    ],
)
def test_commands__refuse_wrong_options_in_one_line(command: str, args: list[str], message: str) -> None:
    assert message_of(command, *args).startswith(message)


def test_paths__mean_what_they_mean_to_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINE", "boards")
    assert message_of("inspect", "--root=~/$MINE/data.yaml").startswith(f"{tmp_path}/boards/data.yaml: no such file")
    assert message_of("export", "--ckpt_path=~/best.pt").startswith(f"--ckpt_path: {tmp_path}/best.pt: no such file")
