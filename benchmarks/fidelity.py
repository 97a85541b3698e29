"""Training by yolofit and by Ultralytics' trainer: same data, first weights, recipe and number of images seen.

On a CPU, as many seeds as time allows; the same command later goes on where it stopped:

    PYTHONPATH=. python benchmarks/fidelity.py --seeds 60 --out benchmarks/results/fidelity_boards.json

On one GPU with 16 cores, all runs at the same time, for six minutes:

    PYTHONPATH=. python benchmarks/fidelity.py --device cuda --jobs 12 --epochs 60 --validate-every 20 --deadline 360 \
        --image-size 320 --data synthetic PATH/TO/pcb-components/data.yaml --out benchmarks/results/gpu_fidelity.json

To see it work on a CPU:

    python benchmarks/fidelity.py --jobs 2 --epochs 2 --image-size 96 --seeds 1 --data synthetic --images 32

For every data set and seed a random yolo11n is written into one file, and every arm starts from it. They share the
recipe of configs/parity.yaml with an effective batch of `--batch` images, so neither accumulates. The averaged weights
of either's last and best epoch are then validated by yolofit's validator and, with ``--both-validators``, by
Ultralytics'. What is not training is left out on both sides: pictures, the report, checkpoints of epochs that are not
validated, Ultralytics' validation of its best epoch. The data set is copied for every run; its own folder is only read.

``--arms`` names the sides (`fidelity_arms.ARMS`): the first is compared with each of the others, seed by seed, and the
result says of each gap whether the first is non-inferior, inferior, or how many seeds would decide
(`fidelity_statistics`). ``--orders 2`` trains two seeds of order and augmentation on each of the first weights.

The result file is written again every few seconds: with the runs that have ended, and of the others the curves so far,
which is what is left of them after `--deadline` seconds.

With `--plain` nothing is augmented: then only the order of images is left to chance, and with one batch an epoch
nothing is, so both trainers must take the same course until rounding has grown into a difference.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from common import write
from fidelity_arms import ARMS
from fidelity_statistics import compared, paired, spread

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
VALIDATORS = ("yolofit", "ultralytics")
IMPORTED_ONCE = ["__main__", "engine.fit", "ultralytics.models.yolo.detect"]
POLL_SECONDS, SAVE_SECONDS = 0.2, 10.0


@dataclass(frozen=True)
class Run:
    """One training, of one arm."""

    arm: str
    """A key of `ARMS`."""
    data_name: str
    seed: int
    source: Path
    """The ``data.yaml`` of the data set, which is only read."""
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
    validate_every: int
    """Epochs from one validation to the next; the last epoch is one of those."""
    validators: tuple[str, ...]

    @property
    def trainer(self) -> str:
        """``yolofit`` or ``ultralytics``."""
        return ARMS[self.arm].trainer

    @property
    def data(self) -> Path:
        """The ``data.yaml`` of its own copy of the data set."""
        return self.folder / "data" / "data.yaml"

    @property
    def kept(self) -> tuple[str, ...]:
        """Checkpoints that are worth looking at."""
        return ("last",) if self.validate_every == self.epochs else ("last", "best")

    @property
    def about(self) -> dict[str, Any]:
        """Which run it is."""
        return {"trainer": self.arm, "data": self.data_name, "seed": self.seed}

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
    from engine.reporter import RunReporter

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
        "trainer.check_val_every_n_epoch": run.validate_every,
    } | {f"data.augment.{name}": value for name, value in run.augment.items()}
    no_pictures = mock.patch.object(RunReporter, "_attempt", lambda *_: None)
    with no_pictures:
        fit([f"--{key}={value}" for key, value in settings.items()])
    return {name: run.folder / "run" / "checkpoints" / f"{name}.ckpt" for name in run.kept}


def ultralytics_overrides(run: Run) -> dict[str, Any]:
    """The recipe in the names of Ultralytics' trainer."""
    recipe = yaml.safe_load(PARITY.read_text())["model"]
    optimizer, schedule = recipe["optimizer"], recipe["schedule"]
    return {
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


def train_ultralytics(run: Run) -> dict[str, Path]:
    """Train with Ultralytics' ``DetectionTrainer``; its checkpoints by name."""
    from ultralytics.engine import trainer as module
    from ultralytics.models.yolo.detect import DetectionTrainer

    no_download = mock.patch.object(module, "check_amp", lambda model: True)  # of a network to check with
    no_polars = mock.patch.object(DetectionTrainer, "read_results_csv", lambda self: {})  # a copy in the checkpoint
    no_final_validation = mock.patch.object(DetectionTrainer, "final_eval", lambda self: None)

    def validate_now_and_then(trainer: DetectionTrainer) -> None:
        trainer.args.val = trainer.args.save = is_validated(trainer.epoch, run)

    with no_download, no_polars, no_final_validation:
        trainer = DetectionTrainer(overrides=ultralytics_overrides(run))
        trainer.add_callback("on_train_epoch_start", validate_now_and_then)
        trainer.train()
    return {name: run.folder / "run" / "weights" / f"{name}.pt" for name in run.kept}


def is_validated(epoch: int, run: Run) -> bool:
    """Whether an epoch, counted from 0, ends with a validation."""
    return (epoch + 1) % run.validate_every == 0


def their_device(run: Run) -> str:
    """The device as Ultralytics writes it."""
    return "cpu" if run.device == "cpu" else "0"


def read_curves(run: Run) -> dict[str, list[float | None]]:
    """Training losses, validation losses and mAP50-95 by epoch, as the trainer itself has logged them so far.

    None stands where an epoch was not validated.
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
            float(row[key]) if row.get(key) and (key.startswith("train/") or is_validated(epoch, run)) else None
            for epoch, row in enumerate(rows)
        ]
        for name, key in (keys | {"val_map50_95": map_key}).items()
    }


def validate_by_yolofit(loaded: LoadedNetwork, run: Run) -> dict[str, float]:
    """What our validator says, in FP32."""
    dataset = ValidationDataset(build_index(read_dataset_yaml(run.data), "val"), run.image_size)
    network = loaded.network.to(run.device)
    evaluation = Evaluation(DetectionLoss(head_strides(network)), LossGains(), NmsConfig(), loaded.class_names)
    for batch in build_validation_loader(dataset, run.batch, 0):
        evaluation.update(network, batch.to(torch.device(run.device)), "fp32")
    results = evaluation.compute()
    return {"map50_95": results.map50_95, "map50": results.map50, **evaluation.losses()}


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


def train_and_validate(run: Run) -> None:
    """One run, in a process of its own: output goes to ``log.txt`` of its folder, what it found to ``result.json``."""
    run.folder.mkdir()
    copy_data(run.source, run.data.parent)
    log = os.open(run.folder / "log.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(1)
    try:
        result = run.about | trained_and_validated(run)
    except BaseException:
        result = {"error": traceback.format_exc()[-3000:]}
    leave_result(run, result)
    shutil.rmtree(run.data.parent)


def log_of(run: Run) -> str:
    """What a run has printed."""
    log = run.folder / "log.txt"
    return log.read_text() if log.exists() else ""


def leave_result(run: Run, result: dict[str, Any]) -> None:
    """Write a run's ``result.json``, which is there as a whole or not at all."""
    run.folder.mkdir(exist_ok=True)
    partial = run.folder / "result.partial"
    partial.write_text(json.dumps(result))
    partial.replace(run.folder / "result.json")


def trained_and_validated(run: Run) -> dict[str, Any]:
    """Curves, mAP of each checkpoint by each validator, and the seconds of training."""
    start_seconds = time.perf_counter()
    train = {"yolofit": train_yolofit, "ultralytics": train_ultralytics}[run.trainer]
    with ARMS[run.arm].exchange(run):
        checkpoints = train(run)
    train_seconds = time.perf_counter() - start_seconds
    validated = {}
    for name, path in checkpoints.items():
        loaded = load_network(path, "checkpoint")
        validated[name] = {"yolofit": validate_by_yolofit(loaded, run)}
        if "ultralytics" in run.validators:
            validated[name]["ultralytics"] = validate_by_ultralytics(loaded, run, run.folder / f"{name}.pt")
    return {"train_seconds": train_seconds, "validated": validated, "curves": read_curves(run)}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each data set, epoch kept and validator: mAP50-95 of every arm over the seeds, and the gaps of the first."""
    summary: dict[str, Any] = {}
    for data in sorted({run["data"] for run in runs}):
        for kept in runs[0]["validated"]:
            for validator in runs[0]["validated"][kept]:
                maps: dict[str, dict[int, float]] = {}
                for run in runs:
                    if run["data"] == data:
                        value = run["validated"][kept][validator]["map50_95"]
                        maps.setdefault(run["trainer"], {})[run["seed"]] = value
                summary[f"{data}, {kept} epoch, validated by {validator}"] = _gaps(maps)
    return summary


def _gaps(maps: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Mean and deviation of each arm, and of every two of them the differences by seed."""
    row: dict[str, Any] = {arm: spread(list(values.values())) for arm, values in maps.items()}
    for first, other in itertools.combinations([arm for arm in ARMS if arm in maps], 2):
        values = paired(maps[first], maps[other])
        name = "gap" if (first, other) == ("yolofit", "ultralytics") else f"{first} less {other}"
        row[name] = compared(values) | {"values": values}
    return row


def make_runs(options: argparse.Namespace, folder: Path, finished: list[dict[str, Any]]) -> list[Run]:
    """Write the first weights; the runs that have not finished, the arms of a seed one after the other."""
    runs = []
    have = {(run["data"], run["seed"], run["trainer"]) for run in finished}
    for data in options.data:
        if data == "synthetic":
            config = SyntheticConfig(options.images, options.validation_images, max(options.image_size, 96))
            source = generate_pcb_dataset(folder / "synthetic", config)
        else:
            source = Path(data)
        name = "synthetic" if data == "synthetic" else source.resolve().parent.name
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            weights = folder / f"{name}-{seed}" / "yolo11n.pt"
            weights.parent.mkdir()
            write_first_weights(weights, source, seed - seed % options.orders, options.image_size)
            runs += [
                Run(
                    arm, name, seed, source, weights, folder / f"{name}-{seed}-{arm.replace(' ', '_')}",
                    options.device, options.precision, options.epochs, options.image_size, options.batch, options.lr,
                    min(10, options.epochs // 5), options.plain, options.validate_every,
                    VALIDATORS if options.both_validators else VALIDATORS[:1],
                )
                for arm in options.arms
                if (name, seed, arm) not in have
            ]  # fmt: skip
    return runs


def train_all(
    runs: list[Run], jobs: int, deadline_seconds: float, start_method: str, save: Callable[[list[Run]], None]
) -> None:
    """Every run in its own process, ``jobs`` at a time; ``save`` is told which have begun, every few seconds."""
    context = get_context(start_method)
    context.set_forkserver_preload(IMPORTED_ONCE)
    waiting, begun, running = list(runs), [], dict[str, BaseProcess]()
    start = saved = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < jobs:
            run = waiting.pop(0)
            begun.append(run)
            running[run.folder.name] = context.Process(target=train_and_validate, args=(run,))
            running[run.folder.name].start()
        time.sleep(POLL_SECONDS)
        ended = [run for run in begun if run.folder.name in running and not running[run.folder.name].is_alive()]
        for run in ended:
            exit_code = running.pop(run.folder.name).exitcode
            if not (run.folder / "result.json").exists():  # killed, by the system or by a fault of some library
                leave_result(run, {"error": f"exit code {exit_code}: {log_of(run)[-2000:]}"})
        now = time.perf_counter()
        if ended or now > saved + SAVE_SECONDS:
            saved = now
            save(begun)
        if now > start + deadline_seconds:
            break
    for process in running.values():
        process.kill()
    save(begun)


def collect(begun: list[Run], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs that have begun have to show: results, errors, and the curves of those that have not ended.

    ``earlier``: results of earlier calls, which go first.
    """
    finished, unfinished, failed = list(earlier), [], {}
    for run in sorted(begun, key=lambda run: (run.data_name, run.seed, run.arm)):
        file = run.folder / "result.json"
        result = json.loads(file.read_text()) if file.exists() else None
        if result is None:
            unfinished.append(run.about | {"curves": read_curves(run)})
        elif "error" in result:
            failed[run.folder.name] = result["error"]
        else:
            finished.append(result)
    epochs = {
        f"{run['data']}-{run['seed']}-{run['trainer']}": len(run["curves"].get("box_loss", [])) for run in unfinished
    }
    print(f"{len(finished)} ended, failed: {list(failed)}, epochs of the others: {epochs}", flush=True)
    return {"failed": failed, "summary": summarise(finished), "runs": finished, "unfinished": unfinished}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["synthetic"], help="`synthetic`, or paths of data.yaml files")
    parser.add_argument("--images", type=int, default=900, help="training images of `synthetic`")
    parser.add_argument("--validation-images", type=int, default=2000, help="of `synthetic`")
    parser.add_argument("--arms", nargs="+", default=["yolofit", "ultralytics"], choices=list(ARMS), metavar="ARM")
    parser.add_argument("--orders", type=int, default=1, help="seeds of order on each of the first weights")
    parser.add_argument("--both-validators", action="store_true", help="let Ultralytics' validator measure, too")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--plain", action="store_true", help="augment nothing")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--validate-every", type=int, help="epochs; a divisor of --epochs; default: the last only")
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds after which runs are broken off")
    start_help = "forkserver imports once for all; spawn, should CUDA not like it, once in each process"
    parser.add_argument("--start", default="forkserver", choices=("forkserver", "spawn"), help=start_help)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.validate_every = options.validate_every or options.epochs
    if options.epochs % options.validate_every:
        parser.error("--validate-every: the last epoch must be one of those")
    what = (
        f"yolo11n from random weights, {options.epochs} epochs at {options.image_size}, batch {options.batch}, "
        f"{options.images} drawn boards, "
        f"lr {options.lr}, {options.precision}, {'nothing augmented, ' * options.plain}else as configs/parity.yaml"
    )
    earlier = json.loads(options.out.read_text()) if options.out and options.out.exists() else {"runs": []}
    if earlier.get("what", what) != what:
        parser.error(f"--out: {options.out}: holds runs of another setting ({earlier['what']}): give another file")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # loaders of runs broken off still end
        os.environ |= {"YOLOFIT_CACHE": folder, "YOLO_CONFIG_DIR": folder, "OMP_NUM_THREADS": "1"}
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # to ask for GPUs before a fork must not start CUDA
        # Ultralytics writes its settings when first imported: now, lest the runs do so all at once.
        subprocess.run([sys.executable, "-c", "import ultralytics"], check=True)
        runs = make_runs(options, Path(folder), earlier["runs"])
        start_seconds = time.perf_counter()

        def save(begun: list[Run]) -> None:
            wall = {"wall_seconds": time.perf_counter() - start_seconds + earlier.get("wall_seconds", 0)}
            write(options.out, what, wall | collect(begun, earlier["runs"]), quiet=True)

        train_all(runs, options.jobs, options.deadline, options.start, save)


if __name__ == "__main__":
    main()
