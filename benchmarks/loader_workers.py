"""Images per second and RAM of the training loader against Ultralytics', with several worker processes.

python benchmarks/loader_workers.py --root data.yaml --workers 1 2 4 8 --out benchmarks/results/loader_workers.json

Both sides make the windows of `benchmarks/loader.py`, from disk and from RAM, in a DataLoader with several workers. One
side runs at a time: first a whole epoch, which fills caches and buffers, then rounds of 8 windows, timed by the wall
clock. The rounds do not alternate, because the two sides would share the cores. Run the program on an idle machine with
more cores than workers. RAM is the proportional set size of the main process and its workers: memory that they share
counts once. The main process drops the windows at once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from loader import BATCH_SIZE, WARM_UP_WINDOWS, WINDOWS_PER_ROUND, enlarge, ours, theirs

SIDES = {
    "ultralytics_disk": lambda root, workers: theirs(root, None, workers),
    "ours_disk": lambda root, workers: ours(root, in_ram=False, num_workers=workers),
    "ultralytics_ram": lambda root, workers: theirs(root, "ram", workers),
    "ours_ram": lambda root, workers: ours(root, in_ram=True, num_workers=workers),
}


def measure(side: str, root: Path, num_workers: int, rounds: int, pipe: Connection) -> None:
    """In a process of its own: send the images per second of each round and the RAM afterwards."""
    multiprocessing.set_start_method("fork", force=True)  # of workers, as from a command line on Linux
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    windows = SIDES[side](root, num_workers)
    rates = []
    for num_windows in [WARM_UP_WINDOWS] + [WINDOWS_PER_ROUND] * rounds:
        start = time.perf_counter()
        for _ in range(num_windows):
            next(windows)
        rates.append(num_windows * BATCH_SIZE / (time.perf_counter() - start))
    pipe.send((rates[1:], proportional_bytes()))


def proportional_bytes() -> int:
    """RAM of this process and those that it has started."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes)


def run(side: str, root: Path, num_workers: int, rounds: int) -> dict[str, float]:
    """Median and quartiles of a side's rounds, and its RAM."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(side, root, num_workers, rounds, sender))
    process.start()
    rates, ram_bytes = receiver.recv()
    process.join()
    quartiles = statistics.quantiles(rates, n=4)
    return {
        "images_per_second": statistics.median(rates),
        "quartiles": [quartiles[0], quartiles[2]],
        "ram_bytes": ram_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a data.yaml; only read")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    os.environ["YOLO_CONFIG_DIR"] = tempfile.gettempdir()
    os.environ["YOLO_VERBOSE"] = "false"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        enlarge(args.root, Path(folder))
        for num_workers in args.workers:
            for side in SIDES:
                rows.append({"workers": num_workers, "side": side, **run(side, Path(folder), num_workers, args.rounds)})
                print(rows[-1], flush=True)
    from common import write  # which imports torch: not before the measurement

    what = " ".join("\n".join(__doc__.split("\n\n")[2:]).split())
    about = {"rounds": args.rounds, "cores": os.cpu_count(), "load_average_at_the_end": os.getloadavg()[1]}
    write(args.out, what, about | {"rows": rows}, quiet=True)


if __name__ == "__main__":
    main()
