"""Train with yolofit and with Ultralytics' trainer: same data, first weights, recipe and number of images.

On a CPU, with as many seeds as time allows; the same command resumes a stopped comparison:

    PYTHONPATH=. python benchmarks/fidelity.py --seeds 12 --orders 2 --validate-every 5 --out FILE.json

The effect of one exchange, of exact accumulation, and of the defaults:

    PYTHONPATH=. python benchmarks/fidelity.py --seeds 8 --arms yolofit 'yolofit, warpAffine' --out FILE.json
    PYTHONPATH=. python benchmarks/fidelity.py --seeds 8 --data uneven --arms 'yolofit, 4 x 4' \
        'yolofit, 4 x 4, own normalisers' --out FILE.json
    PYTHONPATH=. python benchmarks/fidelity.py --seeds 8 --data PATH/TO/pcb-components/data.yaml --image-size 128 \
        --arms 'yolofit, its defaults' 'ultralytics, its defaults' --first-weights boards.pt --out FILE.json

On one GPU with 16 cores, all runs at once, for six minutes:

    PYTHONPATH=. python benchmarks/fidelity.py --device cuda --jobs 12 --epochs 60 --validate-every 20 --deadline 360 \
        --image-size 320 --data synthetic PATH/TO/pcb-components/data.yaml --out benchmarks/results/gpu_fidelity.json

To try the program on a CPU:

    python benchmarks/fidelity.py --jobs 2 --epochs 2 --image-size 96 --seeds 1 --data synthetic --images 32

``--arms`` selects what is trained. `fidelity_arms.ARMS` lists the arms, and the arms that each one is compared with.
All arms use the recipe of configs/parity.yaml and an effective batch of ``--batch`` images, unless the name of the arm
states a difference.

For every data set and seed the program writes a random yolo11n to a file. Every arm starts from this file, or from
``--first-weights``. ``--orders 2`` trains two seeds of order and augmentation from each of the first weights.

yolofit's validator evaluates the averaged weights of the early epochs, of the best epoch and of the last epoch. With
``--both-validators`` Ultralytics' validator evaluates them, too. `fidelity_statistics` decides for each gap whether the
first arm is non-inferior or inferior, and otherwise how many seeds would decide.

Both trainers omit what is not training: pictures, the report, checkpoints of epochs without validation, and
Ultralytics' validation of its best epoch. Every run trains on its own copy of the data set.

The program rewrites the result file every few seconds. The file has the results of finished runs and the curves of the
other runs. After ``--deadline`` seconds the program stops the other runs, so that only their curves remain.

``--plain`` switches augmentation off. Only the order of the images then remains random. With one batch an epoch nothing
is random, and the losses of both trainers must agree until rounding errors have grown.
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
from fidelity_statistics import summarize
from uneven_boards import write_uneven_boards

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.replacing import replacing

VALIDATORS = ("yolofit", "ultralytics")
IMPORTED_ONCE = ["__main__", "engine.fit", "ultralytics.models.yolo.detect"]
POLL_SECONDS, SAVE_SECONDS = 0.2, 10.0


def train_and_validate(run: Run) -> None:
    """Train and validate one run in this process. Write the output to ``log.txt``, the result to ``result.json``."""
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
    """The output of a run so far."""
    log = run.folder / "log.txt"
    return log.read_text() if log.exists() else ""


def leave_result(run: Run, result: dict[str, Any]) -> None:
    """Write a run's ``result.json``, whole or not at all."""
    run.folder.mkdir(exist_ok=True)
    with replacing(run.folder / "result.json") as file:
        file.write(json.dumps(result).encode())


def trained_and_validated(run: Run) -> dict[str, Any]:
    """Curves, metrics of each checkpoint from each validator, and the seconds of training."""
    start_seconds = time.perf_counter()
    with ARMS[run.arm].exchange(run):
        checkpoints = TRAINERS[run.trainer](run)
    train_seconds = time.perf_counter() - start_seconds
    validated = validate_all(run, checkpoints)
    return {"train_seconds": train_seconds, "validated": validated, "curves": read_curves(run)}


def data_sets(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Path of the ``data.yaml`` of each data set, by name; draw `synthetic` and `uneven` data sets."""
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
    """Write the first weights, and list the runs that have not finished; the arms of one seed follow one another."""
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
    """Run every run in its own process, ``jobs`` at a time. Pass the started runs to ``save`` every few seconds."""
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
            if not (run.folder / "result.json").exists():  # the process was killed or crashed
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
    """The content of the result file: results, errors, and the curves of unfinished runs.

    Args:
        begun: The started runs.
        earlier: Results of earlier calls, which come first.
        orders: Seeds for each of the first weights.
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
        "summary": summarize(finished, PAIRS, orders),
        "runs": finished,
        "unfinished": unfinished,
    }


def earlier_call(earlier: dict[str, Any]) -> list[dict[str, str]]:
    """Command and commit of the earlier call, which the file keeps when another call adds runs."""
    return [{"command": earlier["command"], "commit": earlier["machine"]["commit"]}] if "command" in earlier else []


def describe(options: argparse.Namespace) -> str:
    """The settings that all runs of a result file share. Calls with the same settings add their runs to one file."""
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
        help="`synthetic`, `uneven` (1 to about 60 objects per image), or paths of data.yaml",
    )
    parser.add_argument("--images", type=int, default=900, help="number of drawn training images")
    parser.add_argument("--validation-images", type=int, default=2000, help="number of drawn validation images")
    parser.add_argument("--arms", nargs="+", default=["yolofit", "ultralytics"], choices=list(ARMS), metavar="ARM")
    parser.add_argument("--orders", type=int, default=1, help="seeds of order for each of the first weights")
    parser.add_argument("--both-validators", action="store_true", help="validate with Ultralytics' validator, too")
    held_help = "number of training images to use for validation instead"
    parser.add_argument("--hold-back", type=int, default=0, help=held_help)
    parser.add_argument("--first-weights", type=Path, help="a .pt for all runs to start from; default: random, by seed")
    parser.add_argument("--close-mosaic", type=int, help="last epochs without mosaic; default: a fifth, at most 10")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--plain", action="store_true", help="switch augmentation off")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at the same time")
    validate_help = "epochs between validations, a divisor of --epochs; default: validate the last epoch only"
    parser.add_argument("--validate-every", type=int, help=validate_help)
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds after which to stop all runs")
    start_help = "forkserver imports libraries once for all runs; spawn imports them in each process, for CUDA's sake"
    parser.add_argument("--start", default="forkserver", choices=("forkserver", "spawn"), help=start_help)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.validate_every = options.validate_every or options.epochs
    if options.epochs % options.validate_every:
        parser.error(
            f"--validate-every: {options.validate_every}: is no divisor of --epochs {options.epochs}. "
            "Choose one, so that the last epoch is validated."
        )
    what = describe(options)
    earlier = json.loads(options.out.read_text()) if options.out and options.out.exists() else {"runs": []}
    if earlier.get("what", what) != what:
        parser.error(f"--out: {options.out}: has runs with other settings ({earlier['what']}). Choose another file.")
    # The loaders of stopped runs may still write.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ |= {"YOLOFIT_CACHE": folder, "YOLO_CONFIG_DIR": folder, "OMP_NUM_THREADS": "1"}
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looking for GPUs must not start CUDA before a fork
        # Ultralytics writes its settings at the first import: do it once, before the runs import it at the same time.
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
