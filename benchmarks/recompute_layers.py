"""Bytes that each layer of YOLO11l keeps for backward at each recompute level.

python benchmarks/recompute_layers.py --out benchmarks/results/recompute_layers.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import write

from engine.memory.storages import cuda_autocast_on_meta
from models.network import build_network
from models.recompute.rank import measure_layers, rank_layers

NUM_IMAGES, IMAGE_SIZE, NUM_CLASSES = 16, 640, 25


def layer_rows() -> list[dict]:
    """One row a layer: bytes kept at each level (what is inside, and at `block` the output), and the rank."""
    network = build_network("yolo11l", NUM_CLASSES).to("meta")
    images = torch.empty(NUM_IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.float16, device="meta")
    autocast = cuda_autocast_on_meta(torch.float16)
    gains = rank_layers(network, images, autocast)
    rank = {gain.index: number for number, gain in enumerate(gains, start=1)}
    rows = []
    for layer in measure_layers(network, images, autocast):
        rows.append(
            {
                "layer": layer.index,
                "name": layer.name,
                "none_bytes": layer.none_bytes,
                "elementwise_bytes": layer.elementwise_bytes,
                "block_bytes": layer.block_bytes,
                "output_bytes": layer.output_bytes,
                "forward_flops": layer.flops,
                "rank": rank.get(layer.index),
            }
        )
    return rows


def main() -> None:
    """Measure, and write the file; `python docs/generate.py` then makes the table of docs/recompute.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    what = f"yolo11l, {NUM_IMAGES} x {IMAGE_SIZE}, fp16 autocast, kept for backward by layer; on the meta device"
    write(out, what, {"rows": layer_rows()}, quiet=True)


if __name__ == "__main__":
    main()
