"""Images per second and core of the training loader against Ultralytics' data set, in one run.

python benchmarks/loader.py --root data.yaml --out benchmarks/results/loader.json

Both sides make windows of 16 images of 640 pixels (mosaic, affine, HSV and flip with the recipe's defaults), each in
its own process with one thread. The rounds alternate. The result is the median of the rounds' ratios. The program links
the training images repeatedly until there are 960. Otherwise Ultralytics' buffer of recent images, up to 128 for this
batch, would hold most of a small data set and hardly read any file. Its extra Albumentations transforms (such as blur,
each with probability 0.01) are switched off, because yolofit's recipe does not have them.

Seconds are processor seconds of the process, so that other work on the machine has little effect. In the cases
``color_on_device`` yolofit leaves HSV to the GPU (`Batch.colored`), and the figures do not include the GPU's time;
Ultralytics has no such option. ``ram_color_by_torch`` runs the same code on this CPU, as a machine without a GPU would.
In the case ``ram_worker`` both sides make their windows in one worker process of a DataLoader; its seconds are added to
the seconds of the main process.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from data.loading.batch import Batch

BATCH_SIZE = 16
IMAGE_SIZE = 640
NUM_IMAGES = 960
WINDOWS_PER_ROUND = 8
WARM_UP_WINDOWS = NUM_IMAGES // BATCH_SIZE  # a whole epoch: every cache and buffer is full
CASES = {
    "disk": ("ultralytics_disk", "ours_disk"),
    "disk_color_on_device": ("ultralytics_disk", "ours_disk_no_color"),
    "ram": ("ultralytics_ram", "ours_ram"),
    "ram_color_on_device": ("ultralytics_ram", "ours_ram_no_color"),
    "ram_color_by_torch": ("ultralytics_ram", "ours_ram_color_by_torch"),
    "ram_worker": ("ultralytics_ram_worker", "ours_ram_worker"),
}


def theirs(root: Path, cache: str | None, num_workers: int = 0) -> Iterator[object]:
    """Endless batches of Ultralytics' training data set."""
    import ultralytics.data.base
    from torch.utils.data import DataLoader
    from ultralytics.cfg import get_cfg
    from ultralytics.data.augment import Albumentations
    from ultralytics.data.dataset import YOLODataset

    ultralytics.data.base.LOCAL_RANK = 1  # without its progress bar
    names = yaml.safe_load((root / "data.yaml").read_text())["names"]
    dataset = YOLODataset(
        img_path=str(root / "train" / "images"),
        imgsz=IMAGE_SIZE,
        batch_size=BATCH_SIZE,
        augment=True,
        cache=cache,
        hyp=get_cfg(),
        data={"names": dict(enumerate(names)), "channels": 3},
        task="detect",
    )
    for transform in dataset.transforms.transforms:
        if isinstance(transform, Albumentations):
            transform.transform = None
    loader = DataLoader(
        dataset,
        BATCH_SIZE,
        shuffle=True,
        collate_fn=YOLODataset.collate_fn,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def ours(root: Path, in_ram: bool, color_on_device: bool = False, num_workers: int = 0) -> Iterator[Batch]:
    """Endless windows of yolofit's training loader."""
    from data.augmentation.augment import AugmentConfig
    from data.formats.dataset_yaml import read_dataset_yaml
    from data.indexing.index import build_index
    from data.loading.cache import DecodedCache, RecentImages
    from data.loading.dataset import TrainDataset
    from data.loading.loader import build_train_loader
    from data.loading.partners import POOL_SIZE

    index = build_index(read_dataset_yaml(root / "data.yaml"), "train")
    dataset = TrainDataset(index, IMAGE_SIZE, AugmentConfig(), 0, 1000, color_on_device=color_on_device)
    slot_bytes = 3 * IMAGE_SIZE**2
    if in_ram:
        dataset = dataset.with_caches(DecodedCache(len(dataset), slot_bytes))
    else:
        dataset = dataset.with_caches(RecentImages(dataset.pools, 2 * POOL_SIZE, slot_bytes))
    loader = build_train_loader(dataset, BATCH_SIZE, num_workers)
    for epoch in itertools.count():
        loader.batch_sampler.set_epoch(epoch)
        yield from loader


SIDES: dict[str, Callable[[Path], Iterator[object]]] = {
    "ultralytics_disk": lambda root: theirs(root, None),
    "ultralytics_ram": lambda root: theirs(root, "ram"),
    "ours_disk": lambda root: ours(root, in_ram=False),
    "ours_disk_no_color": lambda root: ours(root, in_ram=False, color_on_device=True),
    "ours_ram": lambda root: ours(root, in_ram=True),
    "ours_ram_no_color": lambda root: ours(root, in_ram=True, color_on_device=True),
    "ours_ram_color_by_torch": lambda root: (w.colored() for w in ours(root, in_ram=True, color_on_device=True)),
    "ultralytics_ram_worker": lambda root: theirs(root, "ram", num_workers=1),
    "ours_ram_worker": lambda root: ours(root, in_ram=True, num_workers=1),
}


def serve(side: str, root: Path, pipe: Connection) -> None:
    """In a process of its own: make the requested number of windows, and answer with the seconds."""
    multiprocessing.set_start_method("fork", force=True)  # of workers, as from a command line on Linux
    import cv2
    import torch

    from data.loading.loader import prepare_worker

    if side.startswith("ours"):
        prepare_worker()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    windows = SIDES[side](root)
    while num_windows := pipe.recv():
        start = processor_seconds()
        for _ in range(num_windows):
            next(windows)
        pipe.send(processor_seconds() - start)


def processor_seconds() -> float:
    """Processor seconds of this process and of its worker, if it has one."""
    seconds = time.process_time()
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system
    return seconds


def enlarge(root_yaml: Path, folder: Path) -> None:
    """Link the training images and copy their labels until there are `NUM_IMAGES`."""
    from data.formats.dataset_yaml import read_dataset_yaml
    from data.indexing.index import build_index
    from data.indexing.listing import find_label_file

    dataset = read_dataset_yaml(root_yaml)
    index = build_index(dataset, "train")
    for kind in ("images", "labels"):
        (folder / "train" / kind).mkdir(parents=True)
    for number in range(NUM_IMAGES):
        image = Path(index.path(number % len(index))).resolve()
        (folder / "train" / "images" / f"{number:06d}{image.suffix}").symlink_to(image)
        if label := find_label_file(str(image)):
            (folder / "train" / "labels" / f"{number:06d}.txt").write_bytes(Path(label).read_bytes())
    content = {"train": "train/images", "val": "train/images", "names": list(dataset.names)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))


def compare(reference: str, side: str, root: Path, rounds: int) -> dict[str, float]:
    """Median images per second of both sides, and the median of the rounds' ratios."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, rates = {}, [], {reference: [], side: []}
    for name in rates:
        pipes[name], child = context.Pipe()
        processes.append(context.Process(target=serve, args=(name, root, child)))  # daemons may not have workers
        processes[-1].start()
    for name, pipe in pipes.items():
        pipe.send(WARM_UP_WINDOWS)
        print(f"{name}: warm-up {WARM_UP_WINDOWS * BATCH_SIZE / pipe.recv():.0f} images/s", flush=True)
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(WINDOWS_PER_ROUND)
            rates[name].append(WINDOWS_PER_ROUND * BATCH_SIZE / pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(0)
        process.join()
    medians = {f"{name}_images_per_second": statistics.median(values) for name, values in rates.items()}
    ratios = sorted(a / b for a, b in zip(rates[side], rates[reference], strict=True))
    return medians | {"ratio": statistics.median(ratios), "ratio_range": [ratios[0], ratios[-1]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a data.yaml; only read")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    os.environ["YOLO_CONFIG_DIR"] = tempfile.gettempdir()
    os.environ["YOLO_VERBOSE"] = "false"
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        enlarge(args.root, Path(folder))
        for case, (reference, side) in CASES.items():
            results[case] = compare(reference, side, Path(folder), args.rounds)
            print(case, results[case], flush=True)
    from common import write  # which imports torch: not before the measurement

    what = " ".join("\n".join(__doc__.split("\n\n")[2:]).split())
    about = {"rounds": args.rounds, "load_average_at_the_end": os.getloadavg()[1]}
    write(args.out, what, about | {"results": results}, quiet=True)


if __name__ == "__main__":
    main()
