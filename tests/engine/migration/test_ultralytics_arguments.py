"""What an Ultralytics run was started with, as people have it: commands, scripts and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.migration.ultralytics_arguments import parse_command, read_args_yaml, value_of

TRAIN = {"task": "detect", "mode": "train"}


def test_parse_command__takes_line_ends_and_comments_as_people_write_them() -> None:
    lines = ["yolo detect train \\", " data='my data.yaml' \\", " batch=16 \\   # 실제 배치", " device=0,1 amp=False"]
    arguments = {**TRAIN, "data": "my data.yaml", "batch": 16, "device": [0, 1], "amp": False}
    assert parse_command("\n".join(lines)) == arguments


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("yolo train data=x", {"mode": "train", "data": "x"}),
        ("yolo task=detect mode=train data=x", {**TRAIN, "data": "x"}),
        ("yolo TASK=detect MODE=train DATA=x", {**TRAIN, "data": "x"}),
        ("detect train data=x", {**TRAIN, "data": "x"}),
        ("!yolo detect train data=x", {**TRAIN, "data": "x"}),
        ("$ yolo detect train data=x", {**TRAIN, "data": "x"}),
        ("/opt/bin/yolo detect train data=x", {**TRAIN, "data": "x"}),
        ("python -m ultralytics detect train data=x", {**TRAIN, "data": "x"}),
        ("yolo detect train data=x, batch=8, ", {**TRAIN, "data": "x", "batch": 8}),
        ("yolo detect train batch = 16 data= x", {**TRAIN, "batch": 16, "data": "x"}),
        ("yolo detect train data=x imgsz =[640, 480]", {**TRAIN, "data": "x", "imgsz": [640, 480]}),
        ("yolo detect train data=[a,b]", {**TRAIN, "data": "[a,b]"}),  # a path like any other to a shell
        ("yolo detect train --data=x --epochs=3", {**TRAIN, "data": "x", "epochs": 3}),
        ('yolo detect train "data=my x.yaml" name="a b"', {**TRAIN, "data": "my x.yaml", "name": "a b"}),
        (r"yolo detect train data=my\ x.yaml", {**TRAIN, "data": "my x.yaml"}),
        (r"yolo detect train data=C:\data\new\x.yaml", {**TRAIN, "data": r"C:\data\new\x.yaml"}),
        ("yolo detect train data=x cos_lr exist_ok", {**TRAIN, "data": "x", "cos_lr": True, "exist_ok": True}),
        ("yolo detect train data=x lr0=1e-3 epochs=1e2", {**TRAIN, "data": "x", "lr0": 0.001, "epochs": 100.0}),
        ("yolo detect train data=x freeze=None cache=TRUE", {**TRAIN, "data": "x", "cache": True}),
        ("yolo detect train data=x name=007 project=1e3", {**TRAIN, "data": "x", "name": "007", "project": "1e3"}),
        ("yolo detect train data=x name=a#1 # note", {**TRAIN, "data": "x", "name": "a#1"}),
        ("cd /home/yolo && yolo detect train data=x && echo done", {**TRAIN, "data": "x"}),
        ("yolo detect train data=x; echo done", {**TRAIN, "data": "x"}),
        ("nohup yolo detect train data=x > log.txt 2>&1 &", {**TRAIN, "data": "x"}),
        ("yolo detect train data=x 2>&1 | tee log", {**TRAIN, "data": "x"}),
        ("CUDA_VISIBLE_DEVICES=1 yolo train data=x", {"mode": "train", "data": "x", "CUDA_VISIBLE_DEVICES": 1}),
    ],
)  # fmt: skip
def test_parse_command__takes_what_people_write(command: str, arguments: dict) -> None:
    assert parse_command(command) == arguments


@pytest.mark.parametrize("suffix", [".sh", ".txt"])
def test_parse_command__takes_a_script(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"my train{suffix}"
    command = ["yolo detect train \\", "  data=x \\", "", "  batch=8"]
    lines = ["#!/bin/bash", "# it's mine", "cd data", *command, "python a.py"]
    path.write_text("\n".join(lines))
    assert parse_command(str(path)) == {**TRAIN, "data": "x", "batch": 8}


def test_parse_command__takes_python_code_and_a_file_of_it(tmp_path: Path) -> None:
    code = 'from ultralytics import YOLO\n\nmodel = YOLO("yolo11l.pt")\nmodel.train(data="x", imgsz=640, batch="16")\n'
    arguments = {"model": "yolo11l.pt", "data": "x", "imgsz": 640, "batch": 16}
    path = tmp_path / "train.py"
    path.write_text(code)
    assert parse_command(code) == parse_command(str(path)) == arguments
    assert parse_command('YOLO("yolo11l.pt").train(data="x", imgsz=640, batch=16)') == arguments


def test_parse_command__takes_a_cell_of_a_notebook() -> None:
    lines = ["!pip install x", "%cd", '>>> model = YOLO("yolo11l.pt")', '>>> model.train(data="x",', "...   epochs=3)"]
    assert parse_command("\n".join(lines)) == {"model": "yolo11l.pt", "data": "x", "epochs": 3}


def test_parse_command__reads_the_file_that_cfg_names(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("epochs: 5\nbatch: 8\nlr0: 1e-3\nmodel: yolo11s.pt\n")
    command = parse_command(f"yolo train cfg={tmp_path}/my.yaml data=x epochs=7")
    assert command == {"mode": "train", "data": "x", "epochs": 7, "batch": 8, "lr0": 0.001, "model": "yolo11s.pt"}
    python = parse_command(f'YOLO("yolo11n.pt").train(cfg="{tmp_path}/my.yaml", data="x")')
    assert python == {"model": "yolo11n.pt", "data": "x", "epochs": 5, "batch": 8, "lr0": 0.001}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("yolo segment train data=x", "--from-command: task: segment: not supported. Give a command"),
        ("yolo detect val data=x", "--from-command: mode: val"),
        ("yolo train data=x model=yolo11l-seg.pt", "model: yolo11l-seg.pt: a seg model is not supported"),
        ("yolo detect train data='x", "No closing quotation"),
        ("", "--from-command: empty. Give a command"),
        ("yolo detect train batch=", "batch: no value. Write key=value"),
        ("yolo detect train batch 16", "batch: not an argument. Write key=value"),
        ("yolo train cfg=none.yaml data=x", "cfg: none.yaml: cannot be read .No such file"),
        ("train.py", "train.py: no such file"),
        ('YOLO("a.pt").train(data=["a.yaml", "b.yaml"])', "data: .*: not a path. Give the path of one data.yaml"),
        ('YOLO("a.pt", "segment").train(data="x")', "task: segment"),
        ("model.train(data=", "not valid Python, line 1"),
    ],
)
def test_parse_command__rejects_what_it_cannot_translate(command: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_command(command)


def test_parse_command__names_the_file_with_the_mistake(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text('YOLO("a.pt", task="pose").train(data="x")')
    with pytest.raises(ConfigError, match=r"--from-command: .*train\.py: task: pose"):
        parse_command(str(path))
    notebook = tmp_path / "a.ipynb"
    notebook.write_text("{}")
    with pytest.raises(ConfigError, match=r"a\.ipynb: a notebook\. Save it as \.py"):
        parse_command(str(notebook))


@pytest.mark.parametrize("value", ["*.yaml", "[a", "@1", "2026-99-99", "1e", "os.system('x')"])
def test_value_of__is_a_text_if_it_is_no_literal(value: str) -> None:
    assert value_of(value) == value


@pytest.mark.parametrize("text", ["[1, 2]", "names: [a]", "{", "\x00", "1: 2"])
def test_read_args_yaml__rejects_other_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "args.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"--from-args: .*args\.yaml"):
        read_args_yaml(tmp_path / "args.yaml")


def test_read_args_yaml__takes_numbers_that_stand_there_as_text(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text("data: x\nbatch: '16'\nlr0: 1e-3\namp: 'False'\nname: '7'\ncfg: gone.yaml\n")
    arguments = {"data": "x", "batch": 16, "lr0": 0.001, "amp": False, "name": "7"}
    assert read_args_yaml(tmp_path / "args.yaml") == arguments
