"""A wrong configuration ends in one line that names file and key, the value, the rule and the remedy."""

from __future__ import annotations

import inspect
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from engine.command_line.cli import CommandLine
from engine.command_line.explain import REFUSED_KEYS
from engine.errors import ConfigError, DataError

COMMAND = "python -m engine.fit"
QUICKSTART = "--config=configs/quickstart.yaml"


def message_of(*args: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        CommandLine([*args, "--data.synthetic.num_train=1", "--data.synthetic.num_val=1"], writes_run=False).build()
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.imagesize=3", "data.imagesize: no such key: did you mean data.image_size?"),
        ("--model.compile=true", f"model.compile: no such key: {REFUSED_KEYS['model.compile']}"),
        (
            "--data.reduced_decoding=true",
            f"data.reduced_decoding: no such key: {REFUSED_KEYS['data.reduced_decoding']}",
        ),
        ("--epochs=3", "epochs: no such key: did you mean trainer.max_epochs?"),
        ("--data.batch_size=abc", "data.batch_size: abc: expected int"),
        ("--data.batch_size=0", "data.batch_size: 0: must be at least 1"),
        ("--data.image_size=650", "data.image_size: 650: must be a multiple of 32. Use 640."),
        ("--data.root=/none.yaml", "/none.yaml: no such file. Give the data.yaml of a data set."),
        ("--model.optimizer.lr=-1", "model.optimizer.lr: -1.0: must be above 0"),
        ("--model.freeze_layers=99", "model.freeze_layers: 99: must be between 0 and 23"),
        ("--seed_everything=-1", "seed_everything: -1: must be between 0 and 4294967295"),
        ("--trainer.max_epochs=0", "trainer.max_epochs: 0: must be between 1 and 4294967295"),
        ("--run.patience=-1", "run.patience: -1: must be between 0 and 4294967295"),
        ("--trainer.precision=16-mixed", "trainer.precision: 16-mixed: yolofit does this itself: use model.precision"),
        (
            "--trainer.strategy=fsdp",
            "trainer.strategy: fsdp: yolofit shares windows out among the devices itself, and the weights are too "
            "small to be worth sharding (docs/distributed.md): leave it out",
        ),
        (
            "--trainer.devices=17",
            "data.batch_size: 16: is less than the 17 devices that share it: raise it, or lower trainer.devices",
        ),
        (
            "--data.micro_batch_size=99",
            "data.micro_batch_size: 99: is more than data.batch_size (16), the images of a whole optimizer step. "
            "Lower it or raise data.batch_size.",
        ),
        (
            "--model.network=yolo12",
            "model.network: yolo12: has no size: give one of yolo12n, yolo12s, yolo12m, yolo12l, yolo12x",
        ),
        (
            "--model.network=none.yaml",
            "model.network: none.yaml: not a file, and not an Ultralytics network. Check the path.",
        ),
    ],
)
def test_command_line__explains_a_wrong_argument(argument: str, message: str) -> None:
    assert message_of(QUICKSTART, argument) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# \xb1\xb9\ndata: {root: x}", "is not in UTF-8 ('utf-8' codec can't decode byte 0xb1"),
        (b"data: {root: [", "not valid YAML: while parsing"),
        (b"- data", "holds no keys, such as data and model: give a configuration"),
        (b"", "holds no keys, such as data and model: give a configuration"),
        (b"data: 5", "data: 5: expected keys below it, indented"),
        (b"data:\nroot: x", "data: None: expected keys below it, indented"),
    ],
)
def test_command_line__names_a_file_that_is_no_configuration(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(content)
    assert message_of(f"--config={file}").removeprefix("--config: ").startswith(f"{file}: {message}")


def refusal_of(*args: str) -> str:
    with pytest.raises(ConfigError) as caught:
        CommandLine(list(args))
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("epochs=3 imgsz=320", "--trainer.max_epochs 3 --data.image_size 320"),
        ("train model=yolo11n.pt data=x.yaml", "--model.network yolo11n --model.weights yolo11n.pt --data.root x.yaml"),
        ("my.yaml --data.root x", "--data.root x --config my.yaml"),
        ("data.yaml --epochs 3", "--trainer.max_epochs 3 --data.root data.yaml"),
        ("device=0 --data.root x", "--data.root x --trainer.accelerator gpu --trainer.devices '[0]'"),
        ("trainer.max_epochs=3", "--trainer.max_epochs 3"),
        ("best.ckpt", "--ckpt_path best.ckpt"),
        ("'my boards.yaml'", "--config 'my boards.yaml'"),
    ],
)
def test_command_line__says_which_one_was_meant(words: str, message: str) -> None:
    assert refusal_of(*shlex.split(words)).endswith(f": options are written --key value: {COMMAND} {message}")


def test_command_line__knows_a_data_set_from_a_configuration(tmp_path: Path) -> None:
    boards, mine = tmp_path / "boards.yaml", tmp_path / "data.yaml"
    boards.write_text("train: images\nnames: [a]\n")
    mine.write_text("data: {root: x}\n")
    assert refusal_of(str(boards)).endswith(f"{COMMAND} --data.root {boards}")
    assert refusal_of(str(mine)).endswith(f"{COMMAND} --config {mine}")
    assert message_of(f"--config={boards}") == (
        f"--config: {boards}: describes a data set: give it as --data.root {boards}"
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.batch", "data.batch: no such key: did you mean data.batch_size?"),
        ("--model.lr", "model.lr: no such key: did you mean model.optimizer.lr?"),
        ("--data.epochs", "data.epochs: no such key: did you mean trainer.max_epochs?"),
        ("--model.imgsz", "model.imgsz: no such key: did you mean data.image_size?"),
        ("--max_epochs", "max_epochs: no such key: did you mean trainer.max_epochs?"),
        ("--learning_rate", "learning_rate: no such key: did you mean model.optimizer.lr?"),
        ("--model.batch_size", "model.batch_size: follows from data.batch_size: set that"),
        ("--model.name", "model.name: no such key: did you mean model.network?"),
        ("--data", "data: 3: has keys below it: did you mean data.root?"),
    ],
)
def test_command_line__takes_no_abbreviation_but_says_what_it_may_be_for(option: str, message: str) -> None:
    assert message_of(QUICKSTART, option, "3") == message


def test_command_line__names_all_wrong_keys_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {imgsz: 640, augment: {mosiac: 1}}\nepochs: 3\n")
    assert message_of(f"--config={file}", "--model.lr=1", "--foo", "3", "bar") == (
        "model.lr: no such key: did you mean model.optimizer.lr?; foo: no such key: see --help for all keys; "
        f"{file}: data.imgsz: no such key: did you mean data.image_size?; "
        f"{file}: data.augment.mosiac: no such key: did you mean data.augment.mosaic?; "
        f"{file}: epochs: no such key: did you mean trainer.max_epochs?; "
        "bar: options are written --key value: write a list without blanks: --trainer.devices [0,1]"
    )


def test_command_line__takes_keys_of_classes_and_maps() -> None:
    weights, callback = "--data.balance.class_weights.ic=3", "--trainer.callbacks+=EarlyStopping"
    config = CommandLine([QUICKSTART, weights, callback, "--trainer.callbacks.monitor=val/map50"]).config
    assert config.data.balance.class_weights == {"ic": 3.0}
    assert config.trainer.callbacks[0].init_args.monitor == "val/map50"


def test_command_line__refuses_a_key_that_is_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  root: x\nmodel: {network: yolo11n}\ndata:\n  batch_size: 8\n")
    assert message_of(f"--config={file}").endswith("line 4: the key data is given twice: keep one of them")


def test_command_line__puts_home_and_variables_into_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BOARDS", "mine")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "run: {folder: ~/runs/first}\n"
        "data: {root: '~/$BOARDS/data.yaml'}\n"
        "model: {weights: '~/${BOARDS}/yolo11n.pt'}\n"
        "ckpt_path: ~/last.ckpt\n"
        "trainer:\n"
        "  callbacks:\n"
        "  - {class_path: ModelCheckpoint, init_args: {dirpath: ~/more, every_n_epochs: 2}}\n"
        "  logger: {class_path: CSVLogger, init_args: {save_dir: ~/logs}}\n"
    )
    config = CommandLine([f"--config={file}"]).config
    assert config.run.folder == tmp_path / "runs/first"
    assert config.data.root == f"{tmp_path}/mine/data.yaml"
    assert config.model.weights == tmp_path / "mine/yolo11n.pt"
    assert config.ckpt_path == tmp_path / "last.ckpt"
    assert config.trainer.callbacks[0].init_args.dirpath == f"{tmp_path}/more"
    assert config.trainer.logger.init_args.save_dir == f"{tmp_path}/logs"


def test_command_line__needs_a_place_for_the_drawn_boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOLOFIT_CACHE", str(tmp_path / "file"))
    message = message_of(QUICKSTART)
    assert message.startswith(f"{tmp_path}/file/synthetic-")
    assert ": cannot be written (File exists). Make room, or choose another folder (YOLOFIT_CACHE" in message


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_command_line__refuses_to_normalise_over_devices(accelerator: str) -> None:
    """Devices with other numbers of micro-batches would wait for each other in a layer, for ever."""
    message = message_of(QUICKSTART, f"--trainer.accelerator={accelerator}", "--trainer.sync_batchnorm=true")
    assert message.startswith("trainer.sync_batchnorm: true: a device that has fewer images")


@pytest.mark.parametrize("name", ["deepspeed", "ddp_spawn", "ddp_fork", "ddp_notebook", "single_device", "no_such"])
def test_command_line__refuses_strategies_that_are_not_ours(name: str) -> None:
    assert message_of(QUICKSTART, f"--trainer.strategy={name}").startswith(f"trainer.strategy: {name}: yolofit shares")


@pytest.mark.parametrize("arguments", [("--trainer.devices=2",), ("--trainer.strategy=ddp", "--trainer.devices=2")])
def test_command_line__takes_a_strategy_without_a_second_copy_of_the_gradients(arguments: tuple[str, ...]) -> None:
    small = ("--data.synthetic.num_train=2", "--data.synthetic.num_val=1")
    cli = CommandLine([QUICKSTART, *small, *arguments], writes_run=False).build()
    strategy = cli.trainer.strategy
    strategy.connect(cli.model)
    strategy.configure_ddp()
    assert strategy.model is cli.model and cli.trainer.world_size == 2


def test_command_line__refuses_another_number_of_processes_than_torchrun_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of them would train alone, all on the first device."""
    variables = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert message_of(QUICKSTART) == (
        "trainer.devices: torchrun has started 4 processes, the configuration asks for 1: add --trainer.devices 2 "
        "--trainer.num_nodes 2"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data:\n  imgsz: 640\n", "data.imgsz: no such key: did you mean data.image_size?"),
        ("foo: 1\n", "foo: no such key: see --help for all keys"),
        ("data:\n  root: x\n  batch_size: abc\n", "data.batch_size: abc: expected int"),
    ],
)
def test_command_line__names_the_file_with_the_mistake(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    assert message_of(QUICKSTART, f"--config={file}") == f"{file}: {message}"
    assert message_of(QUICKSTART, "--config", str(file)) == f"{file}: {message}"


def test_command_line__reads_a_whole_number_as_one_whatever_order_python_has_for_a_union(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    constructor = inspect.unwrap(Trainer.__init__)
    monkeypatch.setitem(constructor.__annotations__, "limit_train_batches", float | int | None)
    for text, value in (("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("null", None)):
        trainer = CommandLine(["--data.root=any", f"--trainer.limit_train_batches={text}"]).config.trainer
        assert (trainer.limit_train_batches, type(trainer.limit_train_batches)) == (value, type(value))


def test_command_line__asks_for_the_data_set() -> None:
    assert message_of() == "data.root: missing: give --data.root, or a configuration that has it with --config"


def test_command_line__accepts_a_removed_key_of_an_older_run_at_its_default(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data:\n  reduced_decoding: false\n  batch_size: 5\nmodel:\n  network: yolo11s\n")
    config = CommandLine([QUICKSTART, f"--config={file}", "--data.image_size=96"], writes_run=False).config
    assert (config.data.batch_size, config.model.network, config.data.image_size) == (5, "yolo11s", 96)
    assert "reduced_decoding" not in config.data
    file.write_text("data:\n  reduced_decoding: true\n")
    refusal = f"{file}: data.reduced_decoding: no such key: {REFUSED_KEYS['data.reduced_decoding']}"
    assert message_of(QUICKSTART, f"--config={file}") == refusal


def test_command_line__later_files_and_arguments_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  batch_size: 48\n  micro_batch_size: 20\n")
    config = CommandLine([QUICKSTART, f"--config={file}", "--data.micro_batch_size=6"]).config
    assert (config.data.batch_size, config.data.micro_batch_size, config.data.image_size) == (48, 6, 160)


def test_command_line__wins_over_a_file_that_is_named_behind_it() -> None:
    arguments = ["--data.batch_size", "7", "--ckpt_path=runs/a/last.ckpt", "--config", QUICKSTART.partition("=")[2]]
    config = CommandLine([*arguments, "--data.micro_batch_size=6"]).config
    assert (config.data.batch_size, config.data.micro_batch_size, config.data.image_size) == (7, 6, 160)
    assert config.ckpt_path is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "engine.fit",
            [QUICKSTART, "--data.batchsize=3"],
            "data.batchsize: no such key: did you mean data.batch_size?",
        ),
        (
            "engine.validate",
            [QUICKSTART],
            "--ckpt_path: missing: name the weights to validate, such as runs/fit/checkpoints/best.ckpt",
        ),
    ],
)
def test_commands__end_with_one_line_and_status_2(command: str, arguments: list[str], message: str) -> None:
    result = subprocess.run([sys.executable, "-m", command, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == f"error: {message}\n"
    assert result.stdout == ""
