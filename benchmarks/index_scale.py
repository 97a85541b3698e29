"""Cost of the index of a large data set: bytes, seconds at the start, resident memory, time per image.

python benchmarks/index_scale.py --out benchmarks/results/index_scale.json

The first part saves, maps, checks and reads a random index of a million images and 20 million boxes. The second part
scans real files (one JPEG under many names, label files of 20 boxes) with one process, with several processes and with
threads. It then builds the index again: unchanged, with one changed label, and from a damaged index file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import psutil
from common import write

from data.formats.dataset_yaml import DatasetYaml
from data.formats.labels import NOTICE_KINDS
from data.indexing.index import build_index, index_of
from data.indexing.index_file import load_table, save_table
from data.indexing.listing import list_folder
from data.indexing.scan import CHUNK_IMAGES, ScanTask, scan_chunk, scan_images
from data.indexing.scan_table import ARRAYS, ScanTable, offsets_of

BOXES_PER_IMAGE = 20
NAMES = tuple(f"class {number}" for number in range(80))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--num_images", type=int, default=1_000_000, help="of the synthetic index")
    parser.add_argument("--num_files", type=int, default=50_000, help="images on disk")
    parser.add_argument("--folder", type=Path, help="where to write them; the system's folder for scratch if omitted")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    load_average_before = os.getloadavg()[0]  # absolute times mean little on a busy machine
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        synthetic = [
            measure_synthetic(Path(folder), number) for number in (options.num_images // 100, options.num_images)
        ]
        files = measure_files(Path(folder), options.num_files, options.workers)
    results = {"load_average_before": load_average_before, "synthetic": synthetic, "files": files}
    write(options.out, "what the index of a large data set costs", results)


def measure_synthetic(folder: Path, num_images: int) -> dict[str, float]:
    """Save, map, check and read an index of random boxes."""
    table = synthetic_table(num_images)
    array_bytes = sum(getattr(table, name).nbytes for name in ARRAYS)
    file = folder / f"{num_images}.bin"
    save_seconds = seconds(partial(save_table, file, table, ""))
    del table
    before = psutil.Process().memory_info()
    load_seconds = seconds(lambda: load_table(file, ""))
    index = index_of(load_table(file, ""))
    images = np.random.default_rng(1).integers(num_images, size=20_000).tolist()
    read = [seconds(lambda: [(index.path(i), index.labels(i)) for i in images]) for _ in range(5)]
    after = psutil.Process().memory_info()
    return {
        "num_images": num_images,
        "num_boxes": len(index.classes),
        "array_gib": round(array_bytes / 2**30, 3),
        "save_seconds": round(save_seconds, 2),
        "load_and_check_seconds": round(load_seconds, 2),
        "mapped_memory_mib_after_reading": round((after.shared - before.shared) / 2**20, 1),
        "own_memory_mib_after_reading": round((after.rss - after.shared - before.rss + before.shared) / 2**20, 1),
        "read_microseconds_per_image": round(statistics.median(read) / len(images) * 1e6, 2),
    }


def measure_files(folder: Path, num_files: int, workers: int) -> dict[str, float]:
    """Scan real files in three ways, and start again from the index."""
    dataset = write_files(folder, num_files)
    source = dataset.sources("train")[0]
    list_seconds = seconds(lambda: list_folder(source))
    listing = list_folder(source)
    tasks = [ScanTask(path, stamps, None) for path, stamps in zip(*listing, strict=True)]
    scans = {
        "one_process": lambda: scan_images(tasks, NAMES, 1, "scan"),
        f"{workers}_processes": lambda: scan_images(tasks, NAMES, workers, "scan"),
        f"{workers}_threads": lambda: scan_in_threads(tasks, workers),
    }
    times: dict[str, list[float]] = {name: [] for name in scans}
    for _ in range(3):
        for name, scan in scans.items():
            times[name].append(seconds(scan))
    medians = {name: statistics.median(values) for name, values in times.items()}
    start = partial(build_index, dataset, "train", folder / "cache", workers)
    starts = {"first": seconds(start), "unchanged": statistics.median(seconds(start) for _ in range(3))}
    (folder / "labels" / "0000007.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    starts["one_label_changed"] = seconds(start)
    return {
        "num_images": num_files,
        "boxes_per_image": BOXES_PER_IMAGE,
        "list_microseconds_per_image": round(list_seconds / num_files * 1e6, 1),
        "scan_microseconds_per_image": {name: round(value / num_files * 1e6, 1) for name, value in medians.items()},
        "start_seconds": {name: round(value, 2) for name, value in starts.items()},
    }


def scan_in_threads(tasks: list[ScanTask], workers: int) -> None:
    chunks = [tasks[start : start + CHUNK_IMAGES] for start in range(0, len(tasks), CHUNK_IMAGES)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(partial(scan_chunk, names=NAMES), chunks))


def synthetic_table(num_images: int) -> ScanTable:
    rng = np.random.default_rng(0)
    paths = [f"/home/user/data/set/images/train/{number:012d}.jpg".encode() for number in range(num_images)]
    num_boxes = num_images * BOXES_PER_IMAGE
    return ScanTable(
        path_bytes=np.frombuffer(b"".join(paths), np.uint8),
        path_offsets=offsets_of(np.full(num_images, len(paths[0]))),
        boxes_xyxy_rel=rng.random((num_boxes, 4), np.float32),
        classes=rng.integers(0, 80, num_boxes, np.int32),
        box_offsets=offsets_of(np.full(num_images, BOXES_PER_IMAGE)),
        sizes_hw=np.full((num_images, 2), 640, np.int32),
        stamps=rng.integers(0, 2**60, (num_images, 4)),
        notices=np.zeros((num_images, len(NOTICE_KINDS)), np.uint16),
    )


def write_files(folder: Path, num_files: int) -> DatasetYaml:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    picture = folder / "picture.jpg"
    cv2.imwrite(str(picture), rng.integers(0, 256, (640, 640, 3), np.uint8))
    rows = "".join(
        f"{n} {x:.6f} {y:.6f} 0.1 0.12\n" for n, (x, y) in enumerate(rng.uniform(0.1, 0.9, (BOXES_PER_IMAGE, 2)))
    )
    for number in range(num_files):
        (folder / "images" / f"{number:07d}.jpg").hardlink_to(picture)
        (folder / "labels" / f"{number:07d}.txt").write_text(rows)
    return DatasetYaml(folder / "data.yaml", folder, NAMES, {"train": (folder / "images",)})


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
