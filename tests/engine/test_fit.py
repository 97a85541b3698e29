"""Training and validation from the command line, on a few drawn boards."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from data.errors import DataError
from data.loading.batch import Batch
from engine.command_line.foreign_callbacks import monitored_names
from engine.errors import ConfigError
from engine.fit import main as fit
from engine.loop.module import Detector
from engine.training.config import ModelConfig
from engine.training.step import TrainingStep
from engine.validate import main as validate
from engine.validation.evaluation import Evaluation
from models import network
from models.detection import boxes
from models.recompute import norm_act
from tests.helpers.runs import make_boards, quickstart_arguments
from tests.helpers.training import make_step, make_window

FIT_OFFLINE = """
import socket, sys
connect = socket.socket.connect
def refuse(self, *address):
    assert self.family == socket.AF_UNIX, f"network access: {address}"
    return connect(self, *address)
def no_lookup(*args, **kwargs): raise AssertionError(f"network access: {args}")
socket.socket.connect, socket.getaddrinfo = refuse, no_lookup
from engine.fit import main
main(sys.argv[1:])
foreign = ("ultralytics.engine", "ultralytics.data", "ultralytics.models", "ultralytics.cfg")
print("foreign modules:", [name for name in sys.modules if name.startswith(foreign)])
"""


def tree_hash(folder: Path) -> str:
    """Digest of all paths and bytes below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_boards(tmp_path_factory, num_train=16, num_val=6)


def arguments(data_yaml: Path, folder: Path, *more: str) -> list[str]:
    """16 images in windows of 6 by 4: 6 + 6 + 4 images, as (4 + 2) + (4 + 2) + 4."""
    return quickstart_arguments(data_yaml, folder, 96, 6, 4, "--trainer.max_epochs=2", *more)


@pytest.fixture(scope="module")
def finished_run(data_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by the real command, without network, with nothing written elsewhere."""
    base = tmp_path_factory.mktemp("run")
    (base / "home").mkdir()
    environment = {**os.environ, "HOME": str(base / "home"), "YOLOFIT_CACHE": str(base / "cache")}
    before = tree_hash(data_yaml.parent)
    result = subprocess.run(
        [sys.executable, "-c", FIT_OFFLINE, *arguments(data_yaml, base / "fit", "--data.workers=1")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "foreign modules: []" in result.stdout
    assert "mAP50" in result.stdout and "2/2" in result.stdout
    assert list((base / "home").rglob("*")) == []
    assert tree_hash(data_yaml.parent) == before
    return base / "fit"


@pytest.mark.slow
class TestFinishedRun:
    def test_folder__holds_what_is_documented(self, finished_run: Path) -> None:
        names = {path.relative_to(finished_run).as_posix() for path in finished_run.rglob("*") if path.is_file()}
        names = {name for name in names if not name.startswith("tensorboard/")}
        assert list((finished_run / "tensorboard").glob("events.*"))
        checkpoints = {f"checkpoints/{name}.ckpt" for name in ("best", "best.previous", "last", "last.previous")}
        always = {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.csv", "memory.csv"}
        assert names >= always | {"memory.png", "results.png", "report.html"}
        pictures = {name for name in names if name.endswith((".png", ".jpg"))}
        assert names - pictures <= always | checkpoints | {"report.html"}

    def test_metrics__one_row_per_epoch_with_every_column(self, finished_run: Path) -> None:
        rows = list(csv.DictReader((finished_run / "metrics.csv").open()))
        assert [row["epoch"] for row in rows] == ["0", "1"]
        assert [row["step"] for row in rows] == ["2", "5"]  # three windows an epoch, counted from 0
        wanted = ("train/box_loss", "train/lr", "train/clip_rate", "val/map50", "val/map50_95", "val/cls_loss")
        assert all(row[key] != "" for row in rows for key in wanted)

    def test_metrics__are_what_callbacks_can_watch(self, finished_run: Path) -> None:
        head = next(csv.reader((finished_run / "metrics.csv").open()))
        assert set(head) - {"epoch", "step"} == set(monitored_names(has_validation=True))

    def test_config__is_complete_and_runs_again(self, finished_run: Path, tmp_path: Path) -> None:
        config = yaml.safe_load((finished_run / "config.yaml").read_text())
        assert config["model"]["optimizer"]["beta2"] == 0.999
        file = str(finished_run / "config.yaml")
        cli = fit(["--config", file, f"--run.folder={tmp_path / 'again'}", "--trainer.limit_train_batches=1"])
        assert cli.trainer.global_step == 2

    def test_checkpoint__loads_without_running_code(self, finished_run: Path) -> None:
        checkpoint = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["yolofit"]["network"] == "yolo11n"
        assert checkpoint["yolofit"]["step"]["num_steps_taken"] == 6
        weights, average = (
            checkpoint["state_dict"][f"{part}.model.0.conv.weight"] for part in ("network", "ema.network")
        )
        assert weights.dtype == average.dtype == torch.float32
        assert not torch.equal(weights, average)

    def test_files__name_no_module_of_yolofit(self, finished_run: Path) -> None:
        """Its files move; what a run has written before is read all the same."""
        checkpoint = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
        del checkpoint["state_dict"], checkpoint["optimizer_states"]
        written = f"{checkpoint}\n{(finished_run / 'config.yaml').read_text()}"
        assert not re.findall(r"\b(?:engine|models)\.\w+|class_path: data\.", written)

    def test_validate__gives_the_numbers_of_the_run(
        self, finished_run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = list(csv.DictReader((finished_run / "metrics.csv").open()))
        checkpoint = finished_run / "checkpoints" / "last.ckpt"
        validate(["--config", str(finished_run / "config.yaml"), f"--ckpt_path={checkpoint}", "--json"])
        results = json.loads(capsys.readouterr().out)
        assert results["map50"] == pytest.approx(float(rows[-1]["val/map50"]), abs=1e-6)
        assert results["map50_95"] == pytest.approx(float(rows[-1]["val/map50_95"]), abs=1e-6)
        assert results["num_images"] == 6 and len(results["classes"]) > 1

    def test_fit__into_the_same_folder_leaves_the_old_run_alone(self, finished_run: Path, data_yaml: Path) -> None:
        before = tree_hash(finished_run)
        cli = fit(arguments(data_yaml, finished_run, "--data.workers=0", "--trainer.limit_train_batches=1"))
        assert tree_hash(finished_run) == before
        assert cli.config.run.folder.name == "fit-2"

    def test_weights__start_from_the_average_of_a_checkpoint(
        self, finished_run: Path, data_yaml: Path, tmp_path: Path
    ) -> None:
        from engine.command_line.cli import CommandLine

        checkpoint = finished_run / "checkpoints" / "best.ckpt"
        cli = CommandLine(arguments(data_yaml, tmp_path, f"--model.weights={checkpoint}"), writes_run=False).build()
        saved = torch.load(checkpoint, weights_only=True)["state_dict"]
        for name, tensor in cli.model.network.state_dict().items():
            assert torch.equal(tensor, saved[f"ema.network.{name}"])


@pytest.mark.slow
def test_fit__resumes_at_another_recompute_level(data_yaml: Path, tmp_path: Path) -> None:
    frozen = ("--data.workers=0", "--model.freeze_batch_norm=true", "--data.augment.close_mosaic=0")
    first = fit(arguments(data_yaml, tmp_path / "first", *frozen, "--trainer.max_epochs=1"))
    checkpoint = first.config.run.folder / "checkpoints" / "last.ckpt"
    weights = []
    for level in ("none", "elementwise", "block"):
        more = (*frozen, f"--ckpt_path={checkpoint}", f"--model.recompute={level}")
        cli = fit(arguments(data_yaml, tmp_path / level, *more))
        assert cli.model.step.num_steps_taken == 6
        weights.append(torch.cat([p.detach().flatten() for p in cli.model.network.parameters()]))
    start = torch.cat([p.detach().flatten() for p in first.model.network.parameters()])
    for lean in weights[1:]:
        assert (lean - weights[0]).norm() <= 1e-5 * weights[0].norm()
    assert (weights[0] - start).norm() > 1e-4 * weights[0].norm()


@pytest.mark.slow
def test_fit__micro_batch_changes_neither_steps_nor_schedule(data_yaml: Path, tmp_path: Path) -> None:
    traces = []
    for size in (2, 6):
        run = tmp_path / str(size)
        more = ("--data.workers=0", f"--data.micro_batch_size={size}", "--trainer.limit_val_batches=0")
        cli = fit(arguments(data_yaml, run, *more))
        rows = list(csv.DictReader((run / "metrics.csv").open()))
        traces.append((cli.trainer.global_step, cli.model.step.num_steps_taken, [row["train/lr"] for row in rows]))
    assert traces[0] == traces[1]
    assert traces[0][:2] == (6, 6)


@pytest.mark.slow
def test_fit__crash_in_validation_leaves_the_trained_weights(
    data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.loop.module import Detector

    seen: dict[str, torch.Tensor] = {}

    def crash(self: Evaluation, network: torch.nn.Module, *args: object) -> None:
        seen["average"] = network.model[0].conv.weight.clone()
        raise RuntimeError("crash in validation")

    monkeypatch.setattr(Evaluation, "update", crash)
    modules: list[Detector] = []
    setup = Detector.on_train_start
    monkeypatch.setattr(Detector, "on_train_start", lambda self: (modules.append(self), setup(self)))
    with pytest.raises(RuntimeError, match="crash in validation"):
        fit(arguments(data_yaml, tmp_path / "run", "--data.workers=0"))
    state = modules[0].state_dict()
    assert torch.equal(state["ema.network.model.0.conv.weight"], seen["average"])
    assert not torch.equal(state["network.model.0.conv.weight"], seen["average"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart__learns(tmp_path: Path) -> None:
    """The figure that the README states, with room for another machine's rounding; validated at the end only."""
    more = [f"--run.folder={tmp_path / 'run'}", "--trainer.check_val_every_n_epoch=12"]
    cli = fit(["--config=configs/quickstart.yaml", *more])
    assert cli.model.results.map50 > 0.25


@pytest.mark.slow
def test_fit__goes_on_when_memory_runs_out_in_training_and_in_validation(
    data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure in the second epoch, and one in every validation batch of more than one image."""
    evaluate, accumulate = Evaluation.update, TrainingStep._accumulate
    windows: list[int] = []

    def evaluate_one(self: Evaluation, network: torch.nn.Module, batch: Batch, *args: object) -> object:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return evaluate(self, network, batch, *args)

    def fail_once(self: TrainingStep, window: Batch) -> object:
        windows.append(len(window))
        if len(windows) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return accumulate(self, window)

    monkeypatch.setattr(Evaluation, "update", evaluate_one)
    monkeypatch.setattr(TrainingStep, "_accumulate", fail_once)
    cli = fit(arguments(data_yaml, tmp_path / "run", "--data.workers=0"))
    assert windows == [6, 6, 4, 6, 6, 6, 4]  # the second window of the second epoch, twice
    assert cli.model.step.num_steps_taken == 6
    assert cli.model.results.num_images == 6
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    memory = checkpoint["yolofit"]["step"]["memory"]
    assert memory["current"]["recompute"] == "elementwise"
    assert [lowering["step"] for lowering in memory["history"]] == [4]


def test_fit__ends_if_an_optimizer_state_is_not_fp32_any_more(
    data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainingStep.run

    def spoil(self: TrainingStep, window: Batch) -> object:
        outcome = run(self, window)
        if len(window) == 4:  # the last of the epoch
            state = next(iter(self.optimizer.state.values()))
            state["exp_avg"] = state["exp_avg"].half()
        return outcome

    monkeypatch.setattr(TrainingStep, "run", spoil)
    more = ("--trainer.max_epochs=1", "--data.workers=0", "--model.optimizer.name=adamw")
    with pytest.raises(AssertionError, match=r"optimizer state exp_avg is torch\.float16"):
        fit(arguments(data_yaml, tmp_path / "run", *more))


def test_detector__releases_captured_graphs_before_validation() -> None:
    module = Detector(ModelConfig("yolo11n", recompute="none"), ["a"], 4, 2, 64)
    module.on_validation_start()  # a validation without training has none
    released: list[bool] = []
    module.step = SimpleNamespace(micro_step=SimpleNamespace(release=lambda: released.append(True)))
    module.on_validation_start()
    assert released == [True]


@pytest.mark.parametrize("split", ["train", "val"])
def test_fit__without_a_split_makes_no_run_folder(data_yaml: Path, tmp_path: Path, split: str) -> None:
    """Only the splits that training reads must be there, and that is seen before anything is written."""
    content = yaml.safe_load(data_yaml.read_text()) | {"path": str(data_yaml.parent), "test": "no/such/folder"}
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(content | {split: "no/such/folder"}))
    with pytest.raises((ConfigError, DataError), match=rf"{split}: 'no/such/folder': .* does not exist"):
        fit(arguments(file, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_fit__takes_callbacks_and_says_that_weights_are_random(
    data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = "{class_path: ModelCheckpoint, init_args: {monitor: val/map50, mode: max, filename: mine}}"
    more = (f"--trainer.callbacks=[{callback}]", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=1")
    cli = fit(arguments(data_yaml, tmp_path / "fit", *more))
    captured = capsys.readouterr()
    assert captured.err.count("training starts from random weights") == 1 and "images/s" not in captured.out
    checkpoints = cli.config.run.folder / "checkpoints"
    assert {path.name for path in checkpoints.glob("*.ckpt")} >= {"best.ckpt", "last.ckpt", "mine.ckpt"}
    config, best = cli.config.run.folder / "config.yaml", checkpoints / "best.ckpt"
    assert validate([f"--config={config}", f"--ckpt_path={best}"]).num_images == 6


def test_detector__keeps_its_kernels_beside_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the kernels when each of two trains, taken in turn."""
    asked: set[str] = set()

    def kernels_for(x: torch.Tensor, fused_kernels: bool) -> object:
        asked.add("fused layers" if fused_kernels else "layers")
        return norm_act

    monkeypatch.setattr(norm_act, "kernels_for", kernels_for)
    monkeypatch.setattr(network, "fused_kernels_work", lambda images: asked.add("fused input"))
    monkeypatch.setattr(boxes, "fused_kernels_work", lambda logits: asked.add("fused boxes"))
    config = ModelConfig("yolo11n", recompute="elementwise")
    detectors = {
        fused: Detector(replace(config, fused_kernels=fused), list("abcde"), 8, 8, 64) for fused in (True, False)
    }
    for fused in (True, False, True):
        asked.clear()
        detector = detectors[fused]
        step = make_step(detector.network, config=detector.config, loss=detector.loss, memory=detector.memory)
        step.run(make_window([1, 2]))
        step.memory.lower("out of memory", 0)  # applies the levels again
        step.run(make_window([1, 2]))
        assert asked == ({"fused layers", "fused input", "fused boxes"} if fused else {"layers"})
