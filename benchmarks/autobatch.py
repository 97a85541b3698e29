"""Ultralytics' AutoBatch on cards of 8, 12, 16 and 24 GiB: its aim, and the memory that its batch takes.

    PYTHONPATH=. python benchmarks/autobatch.py --out benchmarks/results/gpu_autobatch_2026-11-26.json

YOLO11l at 640 in fp16. AutoBatch is `check_train_batch_size`, as Ultralytics' trainer calls it: by default for 0.6 of
the free memory, and here also for 0.9. The program simulates a card of the given size. It caps torch's allocator, and
it answers AutoBatch's questions about the device's memory for such a card, less what CUDA holds in this process.

The chosen batch then trains on the whole device, with Ultralytics' step and with yolofit's at level `none`. The program
compares the bytes that torch's allocator reserves at the peak: Ultralytics' with AutoBatch's aim, yolofit's with the
plan for that batch.

The program measures all cards at the same time. `--dry` tries the program without a GPU, with an AutoBatch that always
answers 2.
"""

from __future__ import annotations

import argparse
import logging
import re
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gpu_steps
import torch
from common import BOXES_PER_IMAGE, write
from gpu_caps import CARDS_GIB, DEVICE, LARGEST, Trials, num_side_by_side, spec_of
from gpu_steps import empty_device, fresh_network
from ultralytics.utils import LOGGER
from ultralytics.utils.autobatch import check_train_batch_size

from engine.memory.overhead import of_this_machine
from engine.memory.probe import context_bytes
from engine.memory.units import GIB
from engine.planning.predict import predict

IMAGE_SIZE = 640
FRACTIONS = (0.6, 0.9)
MOST_IMAGES = 96


@contextmanager
def pretended_card(card_bytes: int, own_bytes: int) -> Iterator[None]:
    """A context in which torch reports a device of this size and caps its allocator accordingly.

    Args:
        card_bytes: Size of the card.
        own_bytes: Bytes that this process holds outside of torch's allocator.
    """
    properties = torch.cuda.get_device_properties(0)
    card = SimpleNamespace(name=properties.name, total_memory=card_bytes)
    torch.cuda.set_per_process_memory_fraction((card_bytes - own_bytes) / properties.total_memory)

    def mem_get_info(device: object = None) -> tuple[int, int]:
        return card_bytes - own_bytes - torch.cuda.memory_reserved(), card_bytes

    try:
        with (
            mock.patch("torch.cuda.get_device_properties", lambda device=None: card),
            mock.patch("torch.cuda.mem_get_info", mem_get_info),
        ):
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def chosen_batch(fraction: float) -> tuple[int, list[str]]:
    """The batch that AutoBatch chooses, and its messages."""
    messages: list[str] = []
    listener = logging.Handler(logging.INFO)
    listener.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    level = LOGGER.level
    LOGGER.addHandler(listener)
    LOGGER.setLevel(logging.INFO)  # `models` silences it
    try:
        batch = check_train_batch_size(
            fresh_network(), IMAGE_SIZE, amp=True, batch=fraction, max_num_obj=BOXES_PER_IMAGE
        )
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeHandler(listener)
    return batch, messages


def expected_bytes(messages: list[str]) -> int | None:
    """Bytes that AutoBatch expects of its batch, to 10 MiB: ``Using batch-size 8 for CUDA:0 4.51G/8.00G``."""
    found = re.search(r"Using batch-size \d+ for \S+ ([\d.]+)G", " ".join(messages))
    return round(float(found[1]) * GIB) if found else None


def measure_card(card_gib: int) -> list[dict[str, Any]]:
    """A row for each fraction."""
    device, machine = torch.device(DEVICE, 0), of_this_machine()
    theirs, ours = (Trials(rival, IMAGE_SIZE, MOST_IMAGES) for rival in ("ultralytics", "none"))
    rows = []
    for fraction in FRACTIONS:
        empty_device()
        own_bytes = context_bytes(device)
        with pretended_card(card_gib * GIB, own_bytes):
            batch, messages = chosen_batch(fraction)
        row: dict[str, Any] = {"card_gib": card_gib, "fraction": fraction, "batch": batch, "messages": messages}
        row |= {"context_bytes": own_bytes, "aim_bytes": round(fraction * (card_gib * GIB - own_bytes))}
        row |= {"expected_bytes": expected_bytes(messages)}
        row |= {"ultralytics": theirs.run(batch), "none": ours.run(batch)}
        with mock.patch("engine.planning.predict.of_this_machine", lambda: machine):
            components = predict(spec_of(IMAGE_SIZE), LARGEST, "none", batch, accumulates=False)
        # AutoBatch's aim does not include the CUDA context either.
        row |= {"planned_bytes": sum(components.values()) - components["cuda_context"]}
        rows.append(row | {"fits_card": row["ultralytics"]["process_bytes"] <= card_gib * GIB})
    return rows


def dry_run(card_gib: int) -> list[dict[str, Any]]:
    """Try `measure_card` without a GPU."""
    gpu_steps.NETWORK = "yolo11n"
    card = SimpleNamespace(name="none", total_memory=80 * GIB)
    with (
        mock.patch("torch.cuda.get_device_properties", lambda device=None: card),
        mock.patch("torch.cuda.set_per_process_memory_fraction"),
        mock.patch.dict(globals(), {"check_train_batch_size": pretended_choice, "MOST_IMAGES": 2}),
    ):
        return measure_card(card_gib)


def pretended_choice(*_: object, **__: object) -> int:
    """Two images, and the message of a real run."""
    LOGGER.info("AutoBatch: Using batch-size 2 for CUDA:0 4.71G/8.00G (59%)")
    return 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cards-gib", type=int, nargs="+", default=CARDS_GIB)
    parser.add_argument("--dry", action="store_true", help="try the program without a GPU")
    options = parser.parse_args()
    what = f"YOLO11l, {IMAGE_SIZE}, fp16: the batch that AutoBatch chooses, its aim, and what that batch takes"
    results: dict[str, Any] = {"rows": [], "failed": {}}
    jobs = num_side_by_side(max(options.cards_gib) * 5 // 4)  # batches that do not fit train, too
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = {pool.submit(dry_run if options.dry else measure_card, card): card for card in options.cards_gib}
        for future in as_completed(futures):
            if error := future.exception():
                results["failed"][futures[future]] = "".join(traceback.format_exception(error))[-2000:]
                print(results["failed"], flush=True)
            else:
                results["rows"] += future.result()
                for row in future.result():
                    print({key: value for key, value in row.items() if key != "messages"}, flush=True)
            results["rows"].sort(key=lambda row: (row["card_gib"], row["fraction"]))
            write(options.out, what, results, quiet=True)


if __name__ == "__main__":
    main()
