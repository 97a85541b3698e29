"""Tables of a data set: images, classes and sizes by split."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from data.indexing.dataset_facts import (
    SIZE_NAMES,
    DatasetFacts,
    SplitFacts,
)

MAX_CLASSES = 60


def print_tables(facts: DatasetFacts, console: Console) -> None:
    """Show counts of images, classes and sizes."""
    console.print(_image_table(facts))
    console.print(_class_table(facts))
    console.print(_size_table(facts))


def _image_table(facts: DatasetFacts) -> Table:
    table = Table("", title="Images", title_justify="left")
    for split in facts.splits:
        table.add_column(split, justify="right")
    parts = list(facts.splits.values())
    table.add_row("images", *[str(part.num_images) for part in parts])
    table.add_row("without objects", *[str(part.num_background) for part in parts])
    table.add_row("left out (bad images)", *[str(len(part.left_out)) for part in parts])
    table.add_row("refused (bad labels)", *[str(len(part.refused)) for part in parts])
    table.add_row("objects", *[str(part.num_boxes) for part in parts])
    table.add_row("objects per image", *[f"{part.num_boxes / max(part.num_images, 1):.1f}" for part in parts])
    table.add_row("most in one image", *[str(part.max_boxes_per_image) for part in parts])
    table.add_row("frequent sizes", *["\n".join(_frequent_sizes(part)) for part in parts])
    return table


def _frequent_sizes(part: SplitFacts) -> list[str]:
    return [f"{size}: {count}" for size, count in list(part.image_sizes.items())[:3]]


def _class_table(facts: DatasetFacts) -> Table:
    table = Table("id", "class", title="Classes: objects (images)", title_justify="left")
    for split in facts.splits:
        table.add_column(split, justify="right")
    table.add_column("share of train", justify="right")
    train = facts.splits["train"]
    order = sorted(range(len(facts.names)), key=lambda class_id: -train.boxes_per_class[class_id])
    for class_id in order[:MAX_CLASSES]:
        counts = [
            f"{part.boxes_per_class[class_id]} ({part.images_per_class[class_id]})" for part in facts.splits.values()
        ]
        share = train.boxes_per_class[class_id] / max(train.num_boxes, 1)
        table.add_row(str(class_id), facts.names[class_id], *counts, f"{share:.1%}")
    if len(order) > MAX_CLASSES:
        table.add_row("", f"and {len(order) - MAX_CLASSES} rarer classes")
    return table


def _size_table(facts: DatasetFacts) -> Table:
    table = Table(f"size at {facts.image_size}", title="Objects by size", title_justify="left")
    for split in facts.splits:
        table.add_column(split, justify="right")
    for name in SIZE_NAMES:
        shares = [part.boxes_per_size[name] / max(part.num_boxes, 1) for part in facts.splits.values()]
        table.add_row(name, *[f"{share:.1%}" for share in shares])
    return table
