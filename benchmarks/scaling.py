"""Calculated scaling over several devices: bytes to communicate in a window, and the efficiency. Nothing is measured.

    python benchmarks/scaling.py --out benchmarks/results/scaling_paper_DATE.json

The model of an optimizer step on N devices: a ring all-reduce sums the FP32 gradients, in parts of
`engine.training.accumulation.PART_BYTES`, after the last backward pass and without overlap. Another all-reduce averages
BatchNorm's running statistics. The processes agree `NUM_AGREEMENTS` times over gloo on one number.

    seconds = 2 (N - 1) / N * bytes / bandwidth + parts * 2 (N - 1) * latency + agreements * 2 log2(N) * host latency
    efficiency = compute / (compute + seconds)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path

from common import write

from engine.training.accumulation import PART_BYTES
from models.network import batch_norms, build_network

DEVICES = (1, 2, 4, 8, 16, 32, 64)
IMAGES_PER_SECOND = 150.0
"""Assumed speed of one device: YOLO11l at 640 px in 16 bits. A faster device lowers the efficiency."""
NUM_AGREEMENTS = 5
"""`out_of_memory.retry` twice, `LastCheckpoint` twice, Lightning's SIGTERM broadcast once."""
HOST_LATENCY_SECONDS = 50e-6


@dataclass(frozen=True)
class Link:
    """The assumed slowest link of the ring."""

    name: str
    bytes_per_second: float
    latency_seconds: float


LINKS = (
    Link("NVLink in a machine", 200e9, 5e-6),
    Link("PCIe 4 x16 in a machine", 20e9, 10e-6),
    Link("100 Gbit/s between machines", 10e9, 15e-6),
    Link("10 Gbit/s between machines", 1.1e9, 50e-6),
)


def communication_seconds(num_devices: int, num_bytes: int, link: Link) -> float:
    """Seconds of communication in one optimizer step."""
    if num_devices == 1:
        return 0.0
    hops = 2 * (num_devices - 1)
    num_parts = ceil(num_bytes / PART_BYTES)
    agreements = NUM_AGREEMENTS * 2 * log2(num_devices) * HOST_LATENCY_SECONDS
    return hops / num_devices * num_bytes / link.bytes_per_second + num_parts * hops * link.latency_seconds + agreements


def efficiency(num_devices: int, images_per_device: float, num_bytes: int, link: Link) -> float:
    """Share of the time in which the devices compute."""
    compute_seconds = images_per_device / IMAGES_PER_SECOND
    return compute_seconds / (compute_seconds + communication_seconds(num_devices, num_bytes, link))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    network = build_network("yolo11l", 25)
    gradient_bytes = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    statistics_bytes = sum(norm.running_mean.nbytes + norm.running_var.nbytes for norm in batch_norms(network))
    num_bytes = gradient_bytes + statistics_bytes
    rows = []
    for link in LINKS:
        for images, kind in ((16, "16 images a device"), (None, "128 images over all devices")):
            shares = {n: round(efficiency(n, images or 128 / n, num_bytes, link), 3) for n in DEVICES}
            rows.append({"link": link.name, "window": kind, "efficiency": shares})
    seconds = {link.name: round(communication_seconds(64, num_bytes, link), 4) for link in LINKS}
    results = {
        "assumed": {
            "images_per_second_of_a_device": IMAGES_PER_SECOND,
            "links": [vars(link) for link in LINKS],
            "agreements": NUM_AGREEMENTS,
            "host_latency_seconds": HOST_LATENCY_SECONDS,
        },
        "gradient_bytes": gradient_bytes,
        "statistics_bytes": statistics_bytes,
        "seconds_on_64_devices": seconds,
        "rows": rows,
    }
    write(options.out, "scaling of YOLO11l on paper: expected, not measured", results)


if __name__ == "__main__":
    main()
