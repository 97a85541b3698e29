"""Training by yolofit and by Ultralytics' trainer: same data, first weights, recipe and number of images seen.

On a CPU, as many seeds as time allows; the same command later resumes where it stopped:

    PYTHONPATH=. python benchmarks/fidelity.py --seeds 12 --orders 2 --validate-every 5 --out FILE.json

What one thing does, by exchanging it; then what exact accumulation does; then what people get who choose nothing:

    PYTHONPATH=. python benchmarks/fidelity.py --seeds 8 --arms yolofit 'yolofit, warpAffine' --out FILE.json
    PYTHONPATH=. python benchmarks/fidelity.py --seeds 8 --data uneven --arms 'yolofit, 4 x 4' \
        'yolofit, 4 x 4, own normalisers' --out FILE.json
    PYTHONPATH=. python benchmarks/fidelity.py --seeds 8 --data PATH/TO/pcb-components/data.yaml --image-size 128 \
        --arms 'yolofit, its defaults' 'ultralytics, its defaults' --first-weights boards.pt --out FILE.json

On one GPU with 16 cores, all runs at the same time, for six minutes:

    PYTHONPATH=. python benchmarks/fidelity.py --device cuda --jobs 12 --epochs 60 --validate-every 20 --deadline 360 \
        --image-size 320 --data synthetic PATH/TO/pcb-components/data.yaml --out benchmarks/results/gpu_fidelity.json

To see it work on a CPU:

    python benchmarks/fidelity.py --jobs 2 --epochs 2 --image-size 96 --seeds 1 --data synthetic --images 32

For every data set and seed a random yolo11n is written into one file, and every arm starts from it; or all start from
``--first-weights``. Arms share the recipe of configs/parity.yaml with an effective batch of `--batch` images, unless
their name says what differs. The averaged weights of early epochs, of the best and of the last are then validated by
yolofit's validator and, with ``--both-validators``, by Ultralytics'. What is not training is left out on both sides:
pictures, the report, checkpoints of epochs that are not validated, Ultralytics' validation of its best epoch. The data
set is copied for every run; its own folder is only read.

``--arms`` names the sides (`fidelity_arms.ARMS`), which also says what each is compared with, seed by seed. The result
says of each gap whether the first is non-inferior, inferior, or how many seeds would decide (`fidelity_statistics`).
``--orders 2`` trains two seeds of order and augmentation on each of the first weights.

The result file is written again every few seconds: with the runs that have ended, and of the others the curves so far,
which is what is left of them after `--deadline` seconds.

With `--plain` nothing is augmented: then only the order of images is left to chance, and with one batch an epoch
nothing is, so both trainers must take the same course until rounding has grown into a difference.
"""

from __future__ import annotations

import argparse
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
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from common import write
from fidelity_arms import ARMS, PAIRS
from fidelity_run import TRAINERS, Run, copy_data, hold_back, read_curves, validate_all, write_first_weights
from fidelity_statistics import summarise
from uneven_boards import write_uneven_boards

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.replacing import replacing

VALIDATORS = ("yolofit", "ultralytics")
IMPORTED_ONCE = ["__main__", "engine.fit", "ultralytics.models.yolo.detect"]
POLL_SECONDS, SAVE_SECONDS = 0.2, 10.0


def train_and_validate(run: Run) -> None:
    """One run, in a process of its own: output goes to ``log.txt`` of its folder, what it found to ``result.json``."""
    run.folder.mkdir()
    copy_data(run.source, run.data.parent)
    if run.hold_back:
        hold_back(run.data, run.hold_back)
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
    with replacing(run.folder / "result.json") as file:
        file.write(json.dumps(result).encode())


def trained_and_validated(run: Run) -> dict[str, Any]:
    """Curves, mAP of each checkpoint by each validator, and the seconds of training."""
    start_seconds = time.perf_counter()
    with ARMS[run.arm].exchange(run):
        checkpoints = TRAINERS[run.trainer](run)
    train_seconds = time.perf_counter() - start_seconds
    validated = validate_all(run, checkpoints)
    return {"train_seconds": train_seconds, "validated": validated, "curves": read_curves(run)}


def data_sets(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Path of the ``data.yaml`` of each data set, by name; those that are drawn are drawn here."""
    found = {}
    size_px = max(options.image_size, 96)
    for data in options.data:
        if data == "synthetic":
            config = SyntheticConfig(options.images, options.validation_images, size_px)
            found[data] = generate_pcb_dataset(folder / data, config)
        elif data == "uneven":
            found[data] = write_uneven_boards(folder / data, options.images, options.validation_images, size_px)
        else:
            found[Path(data).resolve().parent.name] = Path(data)
    return found


def make_runs(options: argparse.Namespace, folder: Path, finished: list[dict[str, Any]]) -> list[Run]:
    """Write the first weights; the runs that have not finished, the arms of a seed one after the other."""
    runs = []
    have = {(run["data"], run["seed"], run["trainer"]) for run in finished}
    for name, source in data_sets(options, folder).items():
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            weights = folder / f"{name}-{seed}" / "yolo11n.pt"
            weights.parent.mkdir()
            if options.first_weights:
                shutil.copyfile(options.first_weights, weights)
            else:
                write_first_weights(weights, source, seed - seed % options.orders, options.image_size)
            runs += [
                Run(
                    arm, ARMS[arm].trainer, ARMS[arm].recipe, ARMS[arm].settings, name, seed, source, weights,
                    folder / f"{name}-{seed}-{arm.replace(' ', '_')}", options.device, options.precision,
                    options.epochs, options.image_size, options.batch, options.lr,
                    min(10, options.epochs // 5) if options.close_mosaic is None else options.close_mosaic,
                    options.plain, options.hold_back, options.validate_every,
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


def collect(begun: list[Run], earlier: list[dict[str, Any]], orders: int) -> dict[str, Any]:
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
    return {
        "failed": failed,
        "orders": orders,
        "summary": summarise(finished, PAIRS, orders),
        "runs": finished,
        "unfinished": unfinished,
    }


def earlier_call(earlier: dict[str, Any]) -> list[dict[str, str]]:
    """The call that left a result file: it is kept when another adds runs."""
    return [{"command": earlier["command"], "commit": earlier["machine"]["commit"]}] if "command" in earlier else []


def describe(options: argparse.Namespace) -> str:
    """What all runs of a result file share; those of another call are added where it is the same."""
    weights = options.first_weights.name if options.first_weights else "random weights"
    held = f"{options.hold_back} training images held back, " if options.hold_back else ""
    is_drawn = bool({"synthetic", "uneven"} & set(options.data))
    drawn = f"{options.images} drawn boards, validated on {options.validation_images}, "
    closed = "" if options.close_mosaic is None else f"close_mosaic {options.close_mosaic}, "
    return (
        f"yolo11n from {weights}, {options.epochs} epochs at {options.image_size}, batch {options.batch}, "
        f"{drawn * is_drawn}lr {options.lr}, {options.precision}, {held}{closed}"
        f"{'nothing augmented, ' * options.plain}else as configs/parity.yaml"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        nargs="+",
        default=["synthetic"],
        help="`synthetic`, `uneven` (1 to some 60 objects a picture), or paths of data.yaml",
    )
    parser.add_argument("--images", type=int, default=900, help="training images that are drawn")
    parser.add_argument("--validation-images", type=int, default=2000, help="that are drawn")
    parser.add_argument("--arms", nargs="+", default=["yolofit", "ultralytics"], choices=list(ARMS), metavar="ARM")
    parser.add_argument("--orders", type=int, default=1, help="seeds of order on each of the first weights")
    parser.add_argument("--both-validators", action="store_true", help="let Ultralytics' validator measure, too")
    held_help = "training images that are validated on instead"
    parser.add_argument("--hold-back", type=int, default=0, help=held_help)
    parser.add_argument("--first-weights", type=Path, help="a .pt that all start from; default: random, by seed")
    parser.add_argument("--close-mosaic", type=int, help="last epochs without mosaic; default: a fifth, at most 10")
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
    what = describe(options)
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
            about = {
                "wall_seconds": time.perf_counter() - start_seconds + earlier.get("wall_seconds", 0),
                "earlier_calls": earlier.get("earlier_calls", []) + earlier_call(earlier),
            }
            write(options.out, what, about | collect(begun, earlier["runs"], options.orders), quiet=True)

        train_all(runs, options.jobs, options.deadline, options.start, save)


if __name__ == "__main__":
    main()
