"""Python code is read, never run: literals, names that hold them, and the one call of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.migration.python_calls import PythonError, Unread, training_arguments


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ('YOLO("yolo11l.pt").train(data="x", imgsz=640)', {"model": "yolo11l.pt", "data": "x", "imgsz": 640}),
        ('m = YOLO("a.yaml")\nm = YOLO("b.pt")\nm.train(data="x")', {"model": "b.pt", "data": "x"}),
        ('m = YOLO("a.yaml").load("b.pt")\nm.train(data="x")', {"model": "a.yaml", "pretrained": "b.pt", "data": "x"}),
        ('m = YOLO("b.pt").to("cuda")\nr = m.train(data="x")\nm.val()', {"model": "b.pt", "data": "x"}),
        ('m = YOLO(model="b.pt", task="detect", verbose=True)\nm.train()', {"model": "b.pt", "task": "detect"}),
        ("YOLO().train(data='x')", {"model": "yolo26n.pt", "data": "x"}),
        ('import ultralytics\nultralytics.YOLO("b.pt").train(data="x")', {"model": "b.pt", "data": "x"}),
        ('from ultralytics import YOLO as Y\nY("b.pt").train(data="x")', {"model": "b.pt", "data": "x"}),
        ('D = "x"\nN: int = 3\nYOLO("b.pt").train(data=D, epochs=N)', {"model": "b.pt", "data": "x", "epochs": 3}),
        ('a = dict(data="x", lr0=-1)\nYOLO("b.pt").train(**a)', {"model": "b.pt", "data": "x", "lr0": -1}),
        ('a = {"data": "x"}\nYOLO("b.pt").train(**a, epochs=2)', {"model": "b.pt", "data": "x", "epochs": 2}),
        (
            'def main():\n  m = YOLO("b.pt")\n  m.train(data="x")\nif __name__ == "__main__":\n  main()',
            {"model": "b.pt", "data": "x"},
        ),
        ('if __name__ == "__main__":\n    m = YOLO("b.pt")\n    m.train(data="x")', {"model": "b.pt", "data": "x"}),
        ('    m = YOLO("b.pt")\n    m.train(data="x")\n', {"model": "b.pt", "data": "x"}),
        (
            'args = dict(model="b.pt", data="x")\nt = DetectionTrainer(overrides=args)\nt.train()',
            {"model": "b.pt", "data": "x"},
        ),
    ],
)
def test_training_arguments__are_those_of_the_call(code: str, arguments: dict) -> None:
    assert training_arguments(code) == arguments


@pytest.mark.parametrize(
    ("code", "key", "source"),
    [
        ('YOLO("b.pt").train(data=os.path.join("a", "b"))', "data", "os.path.join('a', 'b')"),
        ('YOLO(f"{name}.pt").train(data="x")', "model", "f'{name}.pt'"),
        ('model.train(data="x")', "model", "model"),
        ('if a:\n  n = 1\nelse:\n  n = 2\nYOLO("b.pt").train(epochs=n)', "epochs", "n"),
        ('n = 1\nfor n in range(3):\n  pass\nYOLO("b.pt").train(epochs=n)', "epochs", "n"),
        ('n = 1\nn += 1\nYOLO("b.pt").train(epochs=n)', "epochs", "n"),
        ('n = 1\nn, k = f()\nYOLO("b.pt").train(epochs=n)', "epochs", "n"),
        ('n = 1\ndef go(n):\n  YOLO("b.pt").train(epochs=n)', "epochs", "n"),
        ('a = {}\na["epochs"] = 3\nYOLO("b.pt").train(**a)', "**a", "a"),
        ('a = dict(epochs=1)\na.update(epochs=3)\nYOLO("b.pt").train(**a)', "**a", "a"),
        ('YOLO("b.pt").train(Mine, data="x")', "trainer", "Mine"),
    ],
)
def test_training_arguments__are_not_guessed(code: str, key: str, source: str) -> None:
    assert training_arguments(code)[key] == Unread(source)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print(1)", "no call of training. Give code such as YOLO"),
        ("network.train()\nnetwork.train(True)", "no call of training. Give code such as YOLO"),
        ('YOLO("a.pt").train(data="x")\nYOLO("b.pt").train(data="x")', r"2 calls of training \(lines 1, 2\)"),
        ('RTDETR("a.pt").train(data="x")', "line 1: RTDETR: not supported"),
        ("m.train(\n  data='x'", "not valid Python, line 1"),
        ("(" * 500, "not valid Python"),
    ],
)
def test_training_arguments__rejects_other_code(code: str, message: str) -> None:
    with pytest.raises(PythonError, match=message):
        training_arguments(code)


def test_training_arguments__runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    code = f'open("{path}", "w")\nYOLO("b.pt").train(data=open("{path}", "w"), epochs=__import__("os").getpid())'
    assert isinstance(training_arguments(code)["epochs"], Unread)
    assert not path.exists()
