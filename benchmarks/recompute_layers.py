"""Bytes that each layer of YOLO11l keeps for backward at each recompute level, and the table of them in the docs.

python benchmarks/recompute_layers.py --out benchmarks/results/recompute_layers.json --doc docs/recompute.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import write

from engine.memory.simulate import cuda_autocast_on_meta
from models.network import build_network
from models.recompute import can_repeat
from models.recompute.rank import measure_layers, rank_layers

NUM_IMAGES, IMAGE_SIZE, NUM_CLASSES = 16, 640, 25
START, END = "<!-- table: benchmarks/recompute_layers.py -->", "<!-- end of table -->"


def layer_rows() -> list[dict]:
    """One row a layer: bytes kept at each level (what is inside, and at `block` the output), and the rank."""
    network = build_network("yolo11l", NUM_CLASSES).to("meta")
    images = torch.empty(NUM_IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.float16, device="meta")
    autocast = cuda_autocast_on_meta(torch.float16)
    gains = rank_layers(network, images, autocast)
    rank = {gain.index: number for number, gain in enumerate(gains, start=1)}
    rows = []
    for layer in measure_layers(network, images, autocast):
        repeated = can_repeat(network.model[layer.index])
        rows.append(
            {
                "layer": layer.index,
                "name": layer.name,
                "none_bytes": layer.none_bytes,
                "elementwise_bytes": layer.elementwise_bytes,
                "block_bytes": layer.output_bytes if repeated else layer.elementwise_bytes,
                "output_bytes": layer.output_bytes,
                "forward_flops": layer.flops,
                "rank": rank.get(layer.index),
            }
        )
    return rows


def as_table(rows: list[dict], source: str) -> str:
    """A Markdown table in MiB."""
    lines = [
        f"YOLO11l, {NUM_IMAGES} x {IMAGE_SIZE}, fp16 autocast, MiB (`{source}`):",
        "",
        "| layer | | `none` | `elementwise` | `block` | output | GFLOP to repeat | rank |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    keys = ("none_bytes", "elementwise_bytes", "block_bytes", "output_bytes")
    for row in rows:
        sizes = " | ".join(f"{row[key] / 2**20:.1f}" for key in keys)
        flops = f"{row['forward_flops'] / 1e9:.0f}" if row["rank"] else ""
        lines.append(f"| {row['layer']} | {row['name']} | {sizes} | {flops} | {row['rank'] or ''} |")
    totals = " | ".join(f"{sum(row[key] for row in rows) / 2**20:.0f}" for key in keys[:3])
    lines.append(f"| all | | {totals} | | | |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the file, and put the table into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--doc", type=Path, required=True)
    arguments = parser.parse_args()
    rows = layer_rows()
    what = f"yolo11l, {NUM_IMAGES} x {IMAGE_SIZE}, fp16 autocast, kept for backward by layer; on the meta device"
    write(arguments.out, what, {"rows": rows}, quiet=True)
    text = arguments.doc.read_text()
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    arguments.doc.write_text(f"{before}\n{as_table(rows, arguments.out.as_posix())}\n{after}")


if __name__ == "__main__":
    main()
