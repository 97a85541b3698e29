"""Whatever is given for a key: one line, before a run folder is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from engine.command_line import cli, trainer_keys
from engine.command_line.cli import CommandLine
from engine.errors import ConfigError

SMALL = (
    "--config=configs/quickstart.yaml",
    "--data.synthetic.num_train=4",
    "--data.synthetic.num_val=2",
    "--data.micro_batch_size=2",
)
MEASURED = "val/box_loss, val/cls_loss, val/dfl_loss, val/map50_95, "


@pytest.fixture(autouse=True)
def no_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*args: object) -> None:
        raise AssertionError("a run folder is made")

    monkeypatch.setattr(cli, "prepare_run_folder", make)


def message_of(*args: str) -> str:
    with pytest.raises(ConfigError) as caught:
        CommandLine([*SMALL, "--data.batch_size=2", *args]).build()
    message = str(caught.value)
    assert "\n" not in message
    return message


def is_accepted(*args: str) -> bool:
    with pytest.raises(AssertionError, match="a run folder is made"):
        CommandLine([*SMALL, "--data.batch_size=2", *args]).build()
    return True


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("accelerator=tpu", "tpu: expected one of auto, cpu, gpu, cuda, mps"),
        ("accelerator=null", "null: expected one of auto, cpu, gpu, cuda, mps"),
        ("devices=0", "0: give a number of devices"),
        ("devices=[]", "[]: give a number of devices"),
        ("devices=1.5", "1.5: give a number of devices"),
        ("devices=null", "null: give a number of devices"),
        ("devices=[0,1]", "[0, 1]: without GPUs this is a number of processes"),
        ("devices=0,1", "[0, 1]: without GPUs this is a number of processes"),
        ("devices=-1", "-1: without GPUs this is a number of processes"),
        ("num_nodes=0", "0: must be between 1 and"),
        ("num_nodes=2", "2: this process knows of no other machine and would wait for ever"),
        ("max_epochs=null", "None: must be between 1 and"),
        ("max_epochs=1.5", "1.5: expected int"),
        ("min_epochs=99999", "99999: is more than trainer.max_epochs"),
        ("max_steps=0", "0: must be at least 1, or -1"),
        ("max_steps=-5", "-5: must be at least 1, or -1"),
        ("max_time=abc", "abc: give days:hours:minutes:seconds"),
        ("max_time={hour: 1}", "{'hour': 1}: give days:hours:minutes:seconds"),
        ("limit_train_batches=0", "0: give a share above 0 to 1.0"),
        ("limit_train_batches=1.5", "1.5: give a share above 0 to 1.0"),
        ("limit_train_batches=0.01", "0.01: is less than one of 2 batches: give 0.5 or more"),
        ("limit_val_batches=-1", "-1: give a share from 0 to 1.0"),
        ("limit_val_batches=0.01", "0.01: is less than one of 1 batches: give 1.0 or more"),
        ("limit_test_batches=-1", "-1: give a share"),
        ("overfit_batches=0.1", "0.1: windows are drawn anew in each epoch"),
        ("fast_dev_run=-1", "-1: must be true, false or a number of steps"),
        ("val_check_interval=100", "100: an epoch has 2 steps"),
        ("val_check_interval=0", "0: give a share of an epoch, above 0"),
        ("val_check_interval=abc", "abc: give a share of an epoch, above 0"),
        ("check_val_every_n_epoch=0", "0: must be between 1 and"),
        ("check_val_every_n_epoch=null", "None: must be between 1 and"),
        ("num_sanity_val_steps=-5", "-5: must be between -1 and"),
        ("log_every_n_steps=0", "0: must be between 1 and"),
        ("enable_checkpointing=false", "False: best.ckpt and last.ckpt are always written: leave it out"),
        ("gradient_clip_algorithm=norm", "norm: yolofit does this itself: use model.optimizer.max_grad_norm"),
        ("use_distributed_sampler=true", "True: yolofit's sampler shares windows out between devices"),
        ("profiler=abc", "abc: expected one of simple, advanced, pytorch"),
        ("barebones=true", "True: a run without checkpoints and logs keeps nothing"),
        ("plugins=TorchCheckpointIO", "given: precision, checkpoints and what holds processes together are"),
        ("reload_dataloaders_every_n_epochs=-1", "-1: must be between 0 and"),
        ("default_root_dir=/x", "/x: yolofit does this itself: use run.folder"),
        ("model_registry=abc", "abc: checkpoints stay in the run folder"),
        ("logger=5", "5: expected Logger"),
        ("logger=CSVLogger", "lightning.pytorch.loggers.CSVLogger: needs init_args with save_dir"),
    ],
)
def test_trainer__refuses_before_a_run_folder_is_made(setting: str, rule: str) -> None:
    key = setting.partition("=")[0]
    assert message_of(f"--trainer.{setting}").startswith(f"trainer.{key}: {rule}")


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_trainer__refuses_an_accelerator_that_is_not_there(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {name: {"accelerator": type("Absent", (), {"is_available": lambda: False})} for name in ("cuda", "mps")}
    monkeypatch.setattr(trainer_keys, "AcceleratorRegistry", entries)
    rule = f"trainer.accelerator: {accelerator}: torch can use none here (python -m engine.doctor says why)"
    assert message_of(f"--trainer.accelerator={accelerator}").startswith(rule)
    assert CommandLine([*SMALL, f"--trainer.accelerator={accelerator}"])  # the doctor and plans need none


@pytest.mark.parametrize(
    ("devices", "rule"),
    [("3", "3: give 1 to 2, the GPUs of this machine, or auto"), ("0,5", "[0, 5]: GPUs are numbered from 0 to 1 here")],
)
def test_trainer__refuses_gpus_that_are_not_there(devices: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = CommandLine([*SMALL, "--trainer.accelerator=auto", f"--trainer.devices={devices}"]).config
    with pytest.raises(ConfigError, match=f"^trainer.devices: {re.escape(rule)}"):
        trainer_keys.check_hardware(config.trainer)


def test_trainer__reads_numbers_of_devices_from_texts() -> None:
    settled = [trainer_keys.settled_devices(devices) for devices in ("2", "0,1", "1,", "[0]", "-1", "auto", 3, [1])]
    assert settled == [2, [0, 1], [1], [0], -1, "auto", 3, [1]]


@pytest.mark.parametrize(
    "setting",
    [
        "limit_train_batches=1", "limit_train_batches=0.5", "limit_val_batches=0", "val_check_interval=0.5",
        "val_check_interval=2", "max_time=00:01:00:00", "max_time={hours: 1}", "devices=2", "devices=auto",
        "num_sanity_val_steps=-1", "enable_progress_bar=false", "profiler=simple", "logger=false", "plugins=[]",
        "callbacks=LearningRateMonitor", "callbacks=[]", "deterministic=warn", "strategy=ddp",
    ],
)  # fmt: skip
def test_trainer__takes_what_makes_sense(setting: str) -> None:
    assert is_accepted(f"--trainer.{setting}")


@pytest.mark.parametrize(
    ("callback", "rule"),
    [
        ("{class_path: RichProgressBar}", "RichProgressBar: yolofit has a progress line of its own: leave it out"),
        ("{class_path: Timer}", "Timer: use trainer.max_time"),
        ("{class_path: LearningRateFinder}", "LearningRateFinder: it needs a loop of Lightning's own"),
        ("{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 2}}}", "GradientAccumulationSched"),
        ("{class_path: EarlyStopping, init_args: {monitor: val_loss}}",
         f"EarlyStopping: monitor: val_loss: is not measured: choose one of {MEASURED}"),
        ("{class_path: EarlyStopping, init_args: {monitor: mAP50-95}}",
         "EarlyStopping: monitor: mAP50-95: is not measured: did you mean val/map50_95?"),
        ("{class_path: ModelCheckpoint, init_args: {monitor: map50}}",
         "ModelCheckpoint: monitor: map50: is not measured: did you mean val/map50?"),
        ("{class_path: ModelCheckpoint, init_args: {every_n_epochs: 2, save_last: true}}",
         "ModelCheckpoint: best.ckpt and last.ckpt are yolofit's own"),
        ("{class_path: ModelCheckpoint, init_args: {save_top_k: 3}}", "ModelCheckpoint(save_top_k=3, monitor=None) is"),
        ("{class_path: EarlyStopping}", "lightning.pytorch.callbacks.EarlyStopping: needs init_args with monitor"),
        ("{class_path: EarlyStopping, init_args: {monitor: val/map50, patiance: 3}}",
         "lightning.pytorch.callbacks.EarlyStopping: patiance: it has no such argument"),
        ("{class_path: EarlyStopping, init_args: {monitor: val/map50, patience: abc}}",
         "lightning.pytorch.callbacks.EarlyStopping: patience: abc: expected int"),
        ("{class_path: nope.Callback}", "nope.Callback: No module named 'nope': give the path"),
        ("{class_path: torch.nn.Linear}", "torch.nn.Linear: is not a Callback"),
        ("{class_path: NoSuchCallback}", "NoSuchCallback: there is no such class"),
    ],
)  # fmt: skip
def test_callbacks__that_cannot_work_are_refused(callback: str, rule: str) -> None:
    assert message_of(f"--trainer.callbacks=[{callback}]").startswith(f"trainer.callbacks: {rule}")


def test_callbacks__are_told_apart_in_checkpoints() -> None:
    one = "{class_path: ModelCheckpoint, init_args: {every_n_epochs: 2}}"
    message = message_of(f"--trainer.callbacks=[{one}, {one}]")
    assert message.startswith("trainer.callbacks: ModelCheckpoint: is given twice")


def test_callbacks__cannot_watch_a_validation_that_is_left_out() -> None:
    stopping = "--trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: val/map50}}"
    assert "val/map50: is not measured: choose one of train/" in message_of(stopping, "--trainer.limit_val_batches=0")
    assert is_accepted(stopping)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.image_size=32", "data.image_size: 32: leaves the deepest layers one value per channel"),
        ("--memory.budget=abc", "memory.budget: abc: must be a positive size"),
        ("--model.precision=fp16", "model.precision: fp16: a CPU has no fast fp16"),
        ("--model.loss.box=-1", "model.loss.box: -1.0: must be between 0 and"),
        ("--model.max_skipped_windows=-1", "model.max_skipped_windows: -1: must be between 0 and"),
        ("--run.checkpoint_minutes=-1", "run.checkpoint_minutes: -1.0: must be between 0 and"),
        ("--run.folder=", "run.folder: is empty: give a value, or leave it out"),
        ("--run.folder=null", "run.folder: null: give a folder, or leave it out"),
        ("--run.folder=$NO_SUCH_VARIABLE/x", "run.folder: $NO_SUCH_VARIABLE/x: the environment variable NO_SUCH_"),
        ("--seed_everything=true", "seed_everything: True: must be between 0"),
        ("--model.weights=/none/yolo11s.pt", "model.weights: /none/yolo11s.pt: no such file: nothing is downloaded: "),
        ("--model.weights=yolo11s.pt", "model.weights: yolo11s.pt: no such file: nothing is downloaded: is the path "
         "right? yolo11s.pt can be had from https://github.com/ultralytics/assets/releases"),
    ],
)  # fmt: skip
def test_own_keys__are_refused_before_a_run_folder_is_made(argument: str, message: str) -> None:
    assert message_of(argument).startswith(message)


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_own_keys__must_be_finite(number: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(f"model: {{optimizer: {{lr: {number}}}}}\n")
    assert re.fullmatch(r"model\.optimizer\.lr: -?(nan|inf): must be a finite number", message_of(f"--config={file}"))
