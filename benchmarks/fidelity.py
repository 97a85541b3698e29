"""Training by yolofit and by Ultralytics' trainer: same data, first weights, recipe and number of images seen.

On one GPU with 16 cores, all runs at the same time, about four minutes (`--epochs` sets how long):

    PYTHONPATH=. python benchmarks/fidelity.py --device cuda --jobs 12 --epochs 50 --image-size 320 \
        --data synthetic PATH/TO/pcb-components/data.yaml --out "${OUT:-benchmarks/results}/gpu_fidelity.json"

To see it work on a CPU:

    python benchmarks/fidelity.py --jobs 2 --epochs 2 --image-size 96 --seeds 1 --data synthetic --images 32

For every data set and seed a random yolo11n is written into one file, and both trainers start from it. They share the
recipe of configs/parity.yaml with an effective batch of `--batch` images, so neither accumulates. The averaged weights
of either's last epoch and best epoch are then validated twice: by yolofit's validator and by Ultralytics'. The result
file grows with every run that ends, so a run that is cut short leaves what it has. The data set is copied for every
run; its own folder is only read.

With `--plain` nothing is augmented: then only the order of images is left to chance, and with one batch an epoch
nothing is, so both trainers must take the same course until rounding has grown into a difference.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from common import write

from data.dataset import ValidationDataset
from data.dataset_yaml import read_dataset_yaml
from data.index import build_index
from data.loader import build_validation_loader
from data.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.checkpoint import LoadedNetwork, load_network
from engine.evaluation import Evaluation
from engine.export import export
from models.loss import DetectionLoss, LossGains
from models.network import build_network, head_strides
from models.postprocess import NmsConfig

PARITY = Path(__file__).resolve().parent.parent / "configs" / "parity.yaml"
AUGMENTATIONS = ("mosaic", "translate", "scale", "hsv_h", "hsv_s", "hsv_v", "fliplr")
"""All that either recipe does by default, under the names that both have."""
LOSSES = ("box_loss", "cls_loss", "dfl_loss")
TRAINERS = ("yolofit", "ultralytics")


@dataclass(frozen=True)
class Run:
    """One training, of either trainer."""

    trainer: str
    data_name: str
    seed: int
    data: Path
    """Its own copy of the data set, with a ``data.yaml``."""
    weights: Path
    """The ``.pt`` that it starts from."""
    folder: Path
    """Receives everything."""
    device: str
    precision: str
    epochs: int
    image_size: int
    batch: int
    lr: float
    close_mosaic: int
    is_plain: bool

    @property
    def augment(self) -> dict[str, float]:
        """What differs from the recipe."""
        return dict.fromkeys(AUGMENTATIONS, 0.0) if self.is_plain else {}


def copy_data(source: Path, target: Path) -> Path:
    """Copy a data set with all below the folder of its ``data.yaml``; the copy's ``data.yaml`` has absolute paths."""
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


def write_first_weights(path: Path, data: Path, seed: int, image_size: int) -> None:
    """A random yolo11n as an Ultralytics ``.pt``, which both trainers read."""
    names = list(read_dataset_yaml(data).names)
    torch.manual_seed(seed)
    export(LoadedNetwork(build_network("yolo11n", len(names)), "yolo11n", names, image_size), "ultralytics", path)


def train_yolofit(run: Run) -> dict[str, Path]:
    """Train with ``engine.fit``; its checkpoints by name."""
    from engine.fit import main as fit

    settings = {
        "config": PARITY,
        "seed_everything": run.seed,
        "run.folder": run.folder / "run",
        "run.patience": 0,
        "data.root": run.data,
        "data.batch_size": run.batch,
        "data.micro_batch_size": run.batch,
        "data.image_size": run.image_size,
        "data.workers": 0 if run.device == "cpu" else 1,
        "data.augment.close_mosaic": run.close_mosaic,
        "model.network": "yolo11n",
        "model.weights": run.weights,
        "model.precision": run.precision,
        "model.recompute": "none",
        "model.optimizer.lr": run.lr,
        "model.optimizer.nominal_batch_size": run.batch,
        "trainer.accelerator": "cpu" if run.device == "cpu" else "gpu",
        "trainer.max_epochs": run.epochs,
    } | {f"data.augment.{name}": value for name, value in run.augment.items()}
    fit([f"--{key}={value}" for key, value in settings.items()])
    return {name: run.folder / "run" / "checkpoints" / f"{name}.ckpt" for name in ("last", "best")}


def train_ultralytics(run: Run) -> dict[str, Path]:
    """Train with Ultralytics' ``DetectionTrainer``; its checkpoints by name."""
    from ultralytics.engine import trainer as module
    from ultralytics.models.yolo.detect import DetectionTrainer

    recipe = yaml.safe_load(PARITY.read_text())["model"]
    optimizer, schedule = recipe["optimizer"], recipe["schedule"]
    overrides = {
        "model": str(run.weights), "data": str(run.data), "epochs": run.epochs, "imgsz": run.image_size,
        "batch": run.batch, "nbs": run.batch, "optimizer": "AdamW", "lr0": run.lr, "momentum": optimizer["momentum"],
        "weight_decay": optimizer["weight_decay"], "lrf": schedule["final_lr_fraction"],
        "warmup_epochs": schedule["warmup_epochs"], "warmup_bias_lr": schedule["warmup_bias_lr"],
        "warmup_momentum": schedule["warmup_momentum"], "close_mosaic": run.close_mosaic, "seed": run.seed,
        "augmentations": [],  # else it blurs or greys every 25th image where Albumentations is installed
        "amp": run.precision != "fp32" and {"fp16": True, "bf16": "bf16"}[run.precision],
        "device": their_device(run), "workers": 1, "cache": "ram", "patience": run.epochs, "deterministic": False,
        "plots": False, "project": str(run.folder), "name": "run", **run.augment,
    }  # fmt: skip
    no_download = mock.patch.object(module, "check_amp", lambda model: True)  # of a network to check with
    no_polars = mock.patch.object(DetectionTrainer, "read_results_csv", lambda self: {})  # a copy in the checkpoint
    with no_download, no_polars:
        DetectionTrainer(overrides=overrides).train()
    return {name: run.folder / "run" / "weights" / f"{name}.pt" for name in ("last", "best")}


def their_device(run: Run) -> str:
    """The device as Ultralytics writes it."""
    return "cpu" if run.device == "cpu" else "0"


def read_curves(run: Run) -> dict[str, list[float]]:
    """Training losses and validation mAP50-95 by epoch, as the trainer itself logged them."""
    is_ours = run.trainer == "yolofit"
    with (run.folder / "run" / ("metrics.csv" if is_ours else "results.csv")).open(newline="") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    map_key = "val/map50_95" if is_ours else "metrics/mAP50-95(B)"
    keys = {name: f"train/{name}" for name in LOSSES} | {f"val_{name}": f"val/{name}" for name in LOSSES}
    return {name: [float(row[key]) for row in rows] for name, key in (keys | {"val_map50_95": map_key}).items()}


def validate_by_yolofit(loaded: LoadedNetwork, run: Run) -> dict[str, float]:
    """What our validator says, in FP32."""
    dataset = ValidationDataset(build_index(read_dataset_yaml(run.data), "val"), run.image_size)
    network = loaded.network.to(run.device)
    evaluation = Evaluation(DetectionLoss(head_strides(network)), LossGains(), NmsConfig(), loaded.class_names)
    for batch in build_validation_loader(dataset, run.batch, 0):
        evaluation.update(network, batch.to(torch.device(run.device)), "fp32")
    results = evaluation.compute()
    return {"map50_95": results.map50_95, "map50": results.map50}


def validate_by_ultralytics(loaded: LoadedNetwork, run: Run, path: Path) -> dict[str, float]:
    """What their validator says, in FP32, with its default of rectangular batches."""
    from ultralytics import YOLO

    loaded.network.to("cpu")
    export(loaded, "ultralytics", path)
    results = YOLO(path).val(
        data=str(run.data), imgsz=run.image_size, batch=run.batch, device=their_device(run), half=False, plots=False,
        workers=0, project=str(run.folder), name="val",
    )  # fmt: skip
    return {"map50_95": float(results.box.map), "map50": float(results.box.map50)}


def train_and_validate(run: Run) -> dict[str, Any]:
    """One run, in a process of its own, whose output goes to ``log.txt`` of its folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(run.folder / "log.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(1)
    start_seconds = time.perf_counter()
    checkpoints = {"yolofit": train_yolofit, "ultralytics": train_ultralytics}[run.trainer](run)
    train_seconds = time.perf_counter() - start_seconds
    validated = {}
    for name, path in checkpoints.items():
        loaded = load_network(path, "checkpoint")
        validated[name] = {
            "yolofit": validate_by_yolofit(loaded, run),
            "ultralytics": validate_by_ultralytics(loaded, run, run.folder / f"{name}.pt"),
        }
    about = {"trainer": run.trainer, "data": run.data_name, "seed": run.seed, "train_seconds": train_seconds}
    return about | {"validated": validated, "curves": read_curves(run)}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each data set, epoch kept and validator: either trainer's mAP50-95 over the seeds, and the paired gap."""
    summary: dict[str, Any] = {}
    for data in sorted({run["data"] for run in runs}):
        for kept in ("last", "best"):
            for validator in TRAINERS:
                maps = {
                    trainer: {
                        run["seed"]: run["validated"][kept][validator]["map50_95"]
                        for run in runs
                        if (run["data"], run["trainer"]) == (data, trainer)
                    }
                    for trainer in TRAINERS
                }
                row = {trainer: spread(list(values.values())) for trainer, values in maps.items()}
                pairs = sorted(maps["yolofit"].keys() & maps["ultralytics"].keys())
                row["gap"] = spread([maps["yolofit"][seed] - maps["ultralytics"][seed] for seed in pairs])
                summary[f"{data}, {kept} epoch, validated by {validator}"] = row
    return summary


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation, with the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values) if values else None, "standard_deviation": deviation, "values": values}


def make_runs(options: argparse.Namespace, folder: Path) -> list[Run]:
    """Copy the data, write the first weights; the runs, ours and theirs of a seed one after the other."""
    runs = []
    for data in options.data:
        if data == "synthetic":
            config = SyntheticConfig(options.images, max(options.images // 3, 8), options.image_size)
            source = generate_pcb_dataset(folder / "synthetic", config)
        else:
            source = Path(data)
        name = "synthetic" if data == "synthetic" else source.resolve().parent.name
        for seed in range(options.seeds):
            weights = folder / f"{name}-{seed}" / "yolo11n.pt"
            weights.parent.mkdir()
            write_first_weights(weights, source, seed, options.image_size)
            for trainer in TRAINERS:
                place = folder / f"{name}-{seed}-{trainer}"
                runs.append(
                    Run(
                        trainer, name, seed, copy_data(source, place / "data"), weights, place, options.device,
                        options.precision, options.epochs, options.image_size, options.batch, options.lr,
                        min(10, options.epochs // 5), options.plain,
                    )
                )  # fmt: skip
    return runs


def train_all(runs: list[Run], jobs: int, save: Any) -> None:
    """Every run in its own process, ``jobs`` at a time; ``save`` is called with what there is when one has ended."""
    finished: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = {pool.submit(train_and_validate, run): run for run in runs}
        for future in as_completed(futures):
            run = futures[future]
            name = run.folder.name
            if error := future.exception():
                failed[name] = "".join(traceback.format_exception(error))[-3000:]
                print(f"{name}: failed\n{failed[name]}", flush=True)
            else:
                result = future.result()
                finished.append(result)
                maps = {kept: values["yolofit"]["map50_95"] for kept, values in result["validated"].items()}
                print(f"{name}: {result['train_seconds']:.0f} s, mAP50-95 {maps}", flush=True)
            save(sorted(finished, key=lambda run: (run["data"], run["seed"], run["trainer"])), failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["synthetic"], help="`synthetic`, or paths of data.yaml files")
    parser.add_argument("--images", type=int, default=160, help="training images of `synthetic`")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--plain", action="store_true", help="augment nothing")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    what = (
        f"yolo11n from random weights, {options.epochs} epochs at {options.image_size}, batch {options.batch}, "
        f"lr {options.lr}, {options.precision}, {'nothing augmented, ' * options.plain}else as configs/parity.yaml"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"YOLOFIT_CACHE": folder, "YOLO_CONFIG_DIR": folder, "OMP_NUM_THREADS": "1"}
        # Ultralytics writes its settings when first imported: now, lest the runs do so all at once.
        subprocess.run([sys.executable, "-c", "import ultralytics"], check=True)
        runs = make_runs(options, Path(folder))
        start_seconds = time.perf_counter()

        def save(finished: list[dict[str, Any]], failed: dict[str, str]) -> None:
            wall = {"wall_seconds": time.perf_counter() - start_seconds, "failed": failed}
            write(options.out, what, wall | {"summary": summarise(finished), "runs": finished}, quiet=True)

        train_all(runs, options.jobs, save)


if __name__ == "__main__":
    main()
