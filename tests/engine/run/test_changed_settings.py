"""Going on with other settings: what is refused, what is said, and that it is right then."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import engine.command_line.cli
from engine.command_line.cli import CommandLine
from engine.errors import ConfigError
from engine.fit import main as fit
from engine.validate import main as validate
from tests.helpers.runs import make_boards, quickstart_arguments, rows_of


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_boards(tmp_path_factory, num_train=8, num_val=2)


def arguments(data_yaml: Path, folder: Path, *more: str) -> list[str]:
    """Two windows of 4 an epoch."""
    workers = ("--data.workers=0", "--trainer.max_epochs=2", "--model.schedule.warmup_epochs=0")
    return quickstart_arguments(data_yaml, folder, 64, 4, 4, *workers, *more)


@pytest.fixture(scope="module")
def finished(data_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch; copied before it is used."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(arguments(data_yaml, folder, "--trainer.max_epochs=1"))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def with_names(data_yaml: Path, names: list[str]) -> Path:
    content = yaml.safe_load(data_yaml.read_text()) | {"names": names, "path": str(data_yaml.parent)}
    path = data_yaml.with_name(f"{abs(hash(tuple(names)))}.yaml")
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def names(data_yaml: Path) -> list[str]:
    names = yaml.safe_load(data_yaml.read_text())["names"]
    return list(names.values()) if isinstance(names, dict) else names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.network=yolo11s", r"model\.network: yolo11s: .*last\.ckpt is of a run with yolo11n: leave it"),
        ("--model.optimizer.name=sgd", r"model\.optimizer\.name: sgd: .* is of a run with adamw: leave it"),
        ("--model.freeze_layers=3", r"model\.freeze_layers: 3: .* is of a run with 0: leave it"),
    ],
)
def test_going_on__refuses_what_its_weights_do_not_fit(change: str, message: str, data_yaml: Path, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"^{message}"):
        fit(arguments(data_yaml, run, f"--ckpt_path={last(run)}", change))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_going_on__refuses_other_classes(data_yaml: Path, run: Path, names: list[str]) -> None:
    swapped = [names[1], names[0], *names[2:]]
    for other, message in ((swapped, f"{names[1]} is its class 1, the data set's 0"), ([*names, "x"], "it has")):
        with pytest.raises(ConfigError, match=rf"^--ckpt_path: .*last\.ckpt: {re.escape(message)}"):
            fit(arguments(with_names(data_yaml, other), run, f"--ckpt_path={last(run)}"))


@pytest.mark.slow
def test_going_on__says_what_is_other_and_does_it(
    data_yaml: Path, run: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = [f"new {name}" for name in names]
    changes = ["--data.image_size=96", "--model.optimizer.weight_decay=0.5", "--model.ema.decay=0.5"]
    root = with_names(data_yaml, renamed)
    cli = fit(arguments(root, run, f"--ckpt_path={last(run)}", "--data.workers=1", *changes))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert set(said) >= {
        "note: data.image_size: 96 from here on, was 64",
        "note: model.optimizer.weight_decay: 0.5 from here on, was 0.0005",
        "note: model.ema.decay: 0.5 from here on, was 0.9999",
        "note: trainer.max_epochs: 2 from here on, was 1",
        f"note: names: {', '.join(renamed)} from here on, were {', '.join(names)}",
    }
    assert not [line for line in said if "workers" in line or "folder" in line]
    assert cli.model.optimizers().optimizer.param_groups[0]["weight_decay"] == 0.5 * 4 / 64
    with pytest.raises(ConfigError, match=r"^trainer\.max_epochs: 1: .*last\.ckpt has 2 epochs behind it: give more$"):
        fit(arguments(root, run, f"--ckpt_path={last(run)}", "--trainer.max_epochs=1"))


@pytest.mark.slow
def test_going_on__with_another_batch_stays_at_its_place_in_the_schedule(data_yaml: Path, run: Path) -> None:
    """Half of the epochs are done, whatever the number of windows in each."""
    more = ("--data.batch_size=2", "--data.micro_batch_size=2", "--model.schedule.final_lr_fraction=0")
    cli = fit(arguments(data_yaml, run, f"--ckpt_path={last(run)}", *more))
    lr = cli.config.model.optimizer.lr
    assert cli.model.step.num_steps_taken == 8  # as if all of its two epochs had had 4 windows
    assert float(rows_of(run)[-1]["train/lr"]) == pytest.approx(lr / 8)  # of the last of 8 steps


@pytest.mark.slow
def test_going_on__within_an_epoch_refuses_another_batch(
    data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    fit(arguments(data_yaml, folder, "--trainer.max_steps=3"))
    with pytest.raises(ConfigError, match=r"^data\.batch_size: 2: .* middle of an epoch with windows of 4 images"):
        args = (f"--ckpt_path={last(folder)}", "--data.batch_size=2", "--data.micro_batch_size=2")
        fit(arguments(data_yaml, folder, *args))
    capsys.readouterr()
    fit(arguments(data_yaml, folder, f"--ckpt_path={last(folder)}"))
    assert f"resuming at epoch 2 of 2, step 2 of 2: {last(folder)}" in capsys.readouterr().out
    assert torch.load(last(folder), weights_only=True)["global_step"] == 4


@pytest.mark.slow
def test_going_on__from_an_older_checkpoint_that_does_not_know_its_settings(data_yaml: Path, run: Path) -> None:
    content = torch.load(last(run), weights_only=True)
    for name in ("settings", "steps_per_epoch", "validation_summary"):
        del content["yolofit"][name]
    content["callbacks"] = {}
    torch.save(content, last(run))
    with pytest.raises(ConfigError, match=r"^model\.network: yolo11s: "):
        fit(arguments(data_yaml, run, f"--ckpt_path={last(run)}", "--model.network=yolo11s"))
    assert fit(arguments(data_yaml, run, f"--ckpt_path={last(run)}")).trainer.global_step == 4


@pytest.mark.slow
def test_best__is_small_and_is_not_gone_on_from_but_all_else(data_yaml: Path, run: Path, tmp_path: Path) -> None:
    """Weights of yolo11n in FP32 are 10 MB."""
    best = run / "checkpoints" / "best.ckpt"
    assert best.stat().st_size < 12e6 < 40e6 < last(run).stat().st_size
    message = (
        r"^--ckpt_path: .*best\.ckpt: holds weights only, .*: give the last\.ckpt .* --model\.weights .*best\.ckpt$"
    )
    with pytest.raises(ConfigError, match=message):
        fit(arguments(data_yaml, run, f"--ckpt_path={best}"))
    results = [validate([*arguments(data_yaml, run), f"--ckpt_path={path}"]).as_dict() for path in (best, last(run))]
    assert results[0] == results[1]
    fit(arguments(data_yaml, tmp_path / "other", f"--model.weights={best}", "--trainer.limit_train_batches=1"))


@pytest.mark.slow
def test_config_yaml__makes_the_same_run_again(data_yaml: Path, run: Path, tmp_path: Path) -> None:
    """Of a run that was planned, and that has gone on since: the plan draws no random numbers."""
    planned = arguments(data_yaml, tmp_path / "planned", "--data.micro_batch_size=auto", "--model.recompute=auto")
    fit([*planned, "--trainer.max_epochs=1"])
    again = ["--config", str(tmp_path / "planned" / "config.yaml"), f"--run.folder={tmp_path / 'again'}"]
    fit(again)
    weights = [torch.load(last(tmp_path / name), weights_only=True)["state_dict"] for name in ("planned", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    fit([*planned, f"--ckpt_path={last(tmp_path / 'planned')}"])
    assert yaml.safe_load((tmp_path / "planned" / "config.yaml").read_text())["ckpt_path"] is None
    assert fit([*again[:2], f"--run.folder={tmp_path / 'third'}"]).trainer.global_step == 4


@pytest.mark.parametrize("seed", ["true", "false"])
def test_seed__is_a_number_or_config_yaml_could_not_repeat_it(seed: str, data_yaml: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^seed_everything: (True|False): must be between 0"):
        fit(arguments(data_yaml, tmp_path / "run", f"--seed_everything={seed}"))


def test_first_weights__do_not_depend_on_what_was_drawn_before(
    data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, weights = engine.command_line.cli.settled_without_plan, []
    for num_draws in (0, 3):
        monkeypatch.setattr(
            engine.command_line.cli, "settled_without_plan", lambda c, n=num_draws: (torch.rand(n), settle(c))[1]
        )
        cli = CommandLine(arguments(data_yaml, tmp_path / "run"), writes_run=False).build()
        weights.append(cli.model.network.state_dict()["model.0.conv.weight"])
    assert torch.equal(*weights)
