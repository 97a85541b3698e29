"""One training of a comparison, with yolofit or with Ultralytics' trainer, and the validation of its checkpoints."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import yaml

from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from data.loading.dataset import ValidationDataset
from data.loading.loader import build_validation_loader
from engine.inference.export_formats import export
from engine.run.checkpoint import LoadedNetwork, load_network
from engine.validation.evaluation import Evaluation
from models.detection.loss import DetectionLoss, LossGains
from models.detection.postprocess import NmsConfig
from models.network import build_network, head_strides

PARITY = Path(__file__).resolve().parent.parent / "configs" / "parity.yaml"
AUGMENTATIONS = ("mosaic", "translate", "scale", "hsv_h", "hsv_s", "hsv_v", "fliplr")
"""All augmentations that either trainer applies by default. Both trainers have keys of these names."""
LOSSES = ("box_loss", "cls_loss", "dfl_loss")

Trainer = Literal["yolofit", "ultralytics"]
Recipe = Literal["parity", "defaults"]


@dataclass(frozen=True)
class Run:
    """One training of one arm."""

    arm: str
    """A key of `fidelity_arms.ARMS`."""
    trainer: Trainer
    recipe: Recipe
    """``parity``: the recipe of configs/parity.yaml for both trainers; ``defaults``: the trainer's own."""
    settings: Mapping[str, Any]
    """Keys of the trainer whose values differ from the recipe."""
    data_name: str
    seed: int
    source: Path
    """The ``data.yaml`` of the original data set, which the run copies."""
    weights: Path
    """The ``.pt`` with the first weights."""
    folder: Path
    """The folder for all files of this run."""
    device: str
    precision: str
    epochs: int
    image_size: int
    batch: int
    lr: float
    close_mosaic: int
    is_plain: bool
    hold_back: int
    """Number of training images that are used for validation instead."""
    validate_every: int
    """Epochs from one validation to the next; divides ``epochs``."""
    validators: tuple[str, ...]

    @property
    def data(self) -> Path:
        """The ``data.yaml`` of this run's copy of the data set."""
        return self.folder / "data" / "data.yaml"

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the checkpoints to validate."""
        return ("last",) if self.validate_every == self.epochs else ("last", "best")

    @property
    def about(self) -> dict[str, Any]:
        """The keys that identify the run in a result file."""
        return {"trainer": self.arm, "data": self.data_name, "seed": self.seed}

    @property
    def augment(self) -> dict[str, float]:
        """Augmentation keys whose values differ from the recipe."""
        return dict.fromkeys(AUGMENTATIONS, 0.0) if self.is_plain else {}

    def is_validated(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, ends with a validation."""
        return (epoch + 1) % self.validate_every == 0

    def early_epochs(self) -> range:
        """Epochs before the last one, counted from 1, that end with a validation."""
        return range(self.validate_every, self.epochs, self.validate_every)


def copy_data(source: Path, target: Path) -> Path:
    """Copy the folder of a ``data.yaml`` with everything in it. The copy's ``data.yaml`` has absolute paths."""
    description = read_dataset_yaml(source)
    for file in source.parent.rglob("*"):
        if file.is_file() and file.suffix != ".cache":
            place = target / file.relative_to(source.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    folder = source.parent.resolve()
    splits = {
        split: [str(target / path.resolve().relative_to(folder)) for path in description.sources(split)]
        for split in ("train", "val")
    }
    copied = target / "data.yaml"
    copied.write_text(yaml.safe_dump({"path": str(target), **splits, "names": list(description.names)}))
    return copied


def hold_back(data: Path, count: int) -> None:
    """Move the last ``count`` training images, ordered by path, to the validation split of a copied data set."""
    description = read_dataset_yaml(data)
    indices = {split: build_index(description, split) for split in ("train", "val")}
    images = {split: sorted(map(index.path, range(len(index)))) for split, index in indices.items()}
    lists = {"train": images["train"][:-count], "val": images["val"] + images["train"][-count:]}
    content = yaml.safe_load(data.read_text())
    for split, paths in lists.items():
        content[split] = str(data.parent / f"{split}.txt")
        (data.parent / f"{split}.txt").write_text("".join(f"{path}\n" for path in paths))
    data.write_text(yaml.safe_dump(content))


def write_first_weights(path: Path, data: Path, seed: int, image_size: int) -> None:
    """Write a random yolo11n as an Ultralytics ``.pt``, which both trainers read."""
    names = list(read_dataset_yaml(data).names)
    torch.manual_seed(seed)
    export(LoadedNetwork(build_network("yolo11n", len(names)), "yolo11n", names, image_size), "ultralytics", path)


def train_yolofit(run: Run) -> dict[str, Path]:
    """Train with ``engine.fit``; return the checkpoints by name."""
    from engine.fit import main as fit
    from engine.loop.reporter import RunReporter

    settings = yolofit_recipe(run) | {
        "seed_everything": run.seed,
        "run.folder": run.folder / "run",
        "run.patience": 0,
        "data.root": run.data,
        "data.image_size": run.image_size,
        "data.workers": 0 if run.device == "cpu" else 1,
        "model.network": "yolo11n",
        "model.weights": run.weights,
        "model.precision": run.precision,
        "trainer.accelerator": "cpu" if run.device == "cpu" else "gpu",
        "trainer.max_epochs": run.epochs,
        "trainer.check_val_every_n_epoch": run.validate_every,
    }
    settings |= {f"data.augment.{name}": value for name, value in run.augment.items()} | dict(run.settings)
    no_pictures = mock.patch.object(RunReporter, "_attempt", lambda *_: None)
    with no_pictures:
        fit([f"--{key}={value}" for key, value in settings.items()])
    return {name: run.folder / "run" / "checkpoints" / f"{name}.ckpt" for name in run.kept}


def yolofit_recipe(run: Run) -> dict[str, Any]:
    """The keys of the recipe for ``engine.fit``."""
    if run.recipe == "defaults":
        return {"config": suggested_config(run)}
    return {
        "config": PARITY,
        "data.batch_size": run.batch,
        "data.micro_batch_size": run.batch,
        "data.augment.close_mosaic": run.close_mosaic,
        "model.recompute": "none",
        "model.optimizer.lr": run.lr,
        "model.optimizer.nominal_batch_size": run.batch,
    }


def suggested_config(run: Run) -> Path:
    """Write the configuration that ``engine.new`` suggests for the data set."""
    from engine.new import main as new

    config = run.folder / "suggested.yaml"
    new([str(run.data), "--output", str(config)])
    return config


def ultralytics_overrides(run: Run) -> dict[str, Any]:
    """The arguments for Ultralytics' trainer."""
    common = {
        "model": str(run.weights), "data": str(run.data), "epochs": run.epochs, "imgsz": run.image_size,
        "seed": run.seed, "device": their_device(run), "workers": 1, "patience": run.epochs, "deterministic": False,
        "amp": run.precision != "fp32" and {"fp16": True, "bf16": "bf16"}[run.precision],
        "plots": False, "project": str(run.folder), "name": "run",
    }  # fmt: skip
    recipe = {} if run.recipe == "defaults" else _parity_in_their_names(run)
    return common | recipe | run.augment | dict(run.settings)


def _parity_in_their_names(run: Run) -> dict[str, Any]:
    recipe = yaml.safe_load(PARITY.read_text())["model"]
    optimizer, schedule = recipe["optimizer"], recipe["schedule"]
    return {
        "batch": run.batch, "nbs": run.batch, "optimizer": "AdamW", "lr0": run.lr, "momentum": optimizer["momentum"],
        "weight_decay": optimizer["weight_decay"], "lrf": schedule["final_lr_fraction"],
        "warmup_epochs": schedule["warmup_epochs"], "warmup_bias_lr": schedule["warmup_bias_lr"],
        "warmup_momentum": schedule["warmup_momentum"], "close_mosaic": run.close_mosaic, "cache": "ram",
        "augmentations": [],  # by default it blurs or grays every 25th image if Albumentations is installed
    }  # fmt: skip


def train_ultralytics(run: Run) -> dict[str, Path]:
    """Train with Ultralytics' ``DetectionTrainer``; return the checkpoints by name, those of early epochs included."""
    from ultralytics.engine import trainer as module
    from ultralytics.models.yolo.detect import DetectionTrainer

    no_download = mock.patch.object(module, "check_amp", lambda model: True)  # which downloads a network to check
    no_polars = mock.patch.object(DetectionTrainer, "read_results_csv", lambda self: {})  # for a copy in the checkpoint
    no_final_validation = mock.patch.object(DetectionTrainer, "final_eval", lambda self: None)
    weights = run.folder / "run" / "weights"
    early = {f"epoch {epoch}": weights / f"early{epoch}.pt" for epoch in run.early_epochs()}

    def validate_now_and_then(trainer: DetectionTrainer) -> None:
        trainer.args.val = trainer.args.save = run.is_validated(trainer.epoch)

    def keep_early(trainer: DetectionTrainer) -> None:
        if (name := f"epoch {trainer.epoch + 1}") in early:
            shutil.copyfile(trainer.last, early[name])

    with no_download, no_polars, no_final_validation:
        trainer = DetectionTrainer(overrides=ultralytics_overrides(run))
        trainer.add_callback("on_train_epoch_start", validate_now_and_then)
        trainer.add_callback("on_model_save", keep_early)
        trainer.train()
    return early | {name: weights / f"{name}.pt" for name in run.kept}


TRAINERS = {"yolofit": train_yolofit, "ultralytics": train_ultralytics}


def their_device(run: Run) -> str:
    """The device in Ultralytics' notation."""
    return "cpu" if run.device == "cpu" else "0"


def read_curves(run: Run) -> dict[str, list[float | None]]:
    """Training losses, validation losses and mAP50-95 by epoch, from the trainer's own log so far.

    Epochs without validation have None.
    """
    is_ours = run.trainer == "yolofit"
    file = run.folder / "run" / ("metrics.csv" if is_ours else "results.csv")
    if not file.exists():
        return {}
    with file.open(newline="") as lines:
        rows = [{key.strip(): value for key, value in row.items() if key} for row in csv.DictReader(lines)]
    map_key = "val/map50_95" if is_ours else "metrics/mAP50-95(B)"
    keys = {name: f"train/{name}" for name in LOSSES} | {f"val_{name}": f"val/{name}" for name in LOSSES}
    return {
        name: [
            float(row[key]) if row.get(key) and (key.startswith("train/") or run.is_validated(epoch)) else None
            for epoch, row in enumerate(rows)
        ]
        for name, key in (keys | {"val_map50_95": map_key}).items()
    }


def validate_all(run: Run, checkpoints: Mapping[str, Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics by checkpoint and validator.

    For its early epochs yolofit has no checkpoints. The trainer's own validations of them, with the same validator,
    are used instead.
    """
    validated: dict[str, dict[str, dict[str, float]]] = {}
    for name, path in checkpoints.items():
        loaded = load_network(path, "checkpoint")
        validated[name] = {"yolofit": validate_by_yolofit(loaded, run)}
        if "ultralytics" in run.validators:
            validated[name]["ultralytics"] = validate_by_ultralytics(loaded, run, run.folder / f"{name}-checked.pt")
    if run.trainer == "yolofit":
        curves = read_curves(run)
        for epoch in run.early_epochs():
            values = {name: curves[f"val_{name}"][epoch - 1] for name in ("map50_95", *LOSSES)}
            validated[f"epoch {epoch}"] = {"yolofit": {name: float(value or 0) for name, value in values.items()}}
    return validated


def validate_by_yolofit(loaded: LoadedNetwork, run: Run) -> dict[str, float]:
    """Validate with yolofit's validator in FP32."""
    dataset = ValidationDataset(build_index(read_dataset_yaml(run.data), "val"), run.image_size)
    network = loaded.network.to(run.device)
    evaluation = Evaluation(DetectionLoss(head_strides(network)), LossGains(), NmsConfig(), loaded.class_names)
    for batch in build_validation_loader(dataset, run.batch, 0):
        evaluation.update(network, batch.to(torch.device(run.device)), "fp32")
    results = evaluation.compute()
    return {"map50_95": results.map50_95, "map50": results.map50, **evaluation.losses()}


def validate_by_ultralytics(loaded: LoadedNetwork, run: Run, path: Path) -> dict[str, float]:
    """Validate with Ultralytics' validator in FP32, in rectangular batches as it does by default."""
    from ultralytics import YOLO

    loaded.network.to("cpu")
    export(loaded, "ultralytics", path)
    results = YOLO(path).val(
        data=str(run.data), imgsz=run.image_size, batch=run.batch, device=their_device(run), half=False, plots=False,
        workers=0, project=str(run.folder), name="val",
    )  # fmt: skip
    return {"map50_95": float(results.box.map), "map50": float(results.box.map50)}
