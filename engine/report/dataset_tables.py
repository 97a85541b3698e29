"""Tables of a data set: images, classes and box sizes of each split."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from data.indexing.dataset_facts import SIZE_NAMES, DatasetFacts

MAX_CLASSES = 60


def print_tables(facts: DatasetFacts, console: Console) -> None:
    """Print a table of images, one of classes and one of box sizes."""
    for table in (_image_table(facts), _class_table(facts), _size_table(facts)):
        console.print(table)


def _table(facts: DatasetFacts, *columns: str, title: str) -> Table:
    """An empty table with the given columns and one more for each split."""
    table = Table(*columns, title=title, title_justify="left")
    for split in facts.splits:
        table.add_column(split, justify="right")
    return table


def _image_table(facts: DatasetFacts) -> Table:
    table = _table(facts, "", title="Images")
    parts = list(facts.splits.values())
    table.add_row("images", *[str(part.num_images) for part in parts])
    table.add_row("without objects", *[str(part.num_background) for part in parts])
    table.add_row("left out (unusable images)", *[str(len(part.left_out)) for part in parts])
    table.add_row("refused (wrong labels)", *[str(len(part.refused)) for part in parts])
    table.add_row("objects", *[str(part.num_boxes) for part in parts])
    table.add_row("objects per image", *[f"{part.num_boxes / max(part.num_images, 1):.1f}" for part in parts])
    table.add_row("most objects in an image", *[str(part.max_boxes_per_image) for part in parts])
    sizes = [[f"{size}: {count}" for size, count in list(part.image_sizes.items())[:3]] for part in parts]
    table.add_row("most frequent sizes", *["\n".join(lines) for lines in sizes])
    return table


def _class_table(facts: DatasetFacts) -> Table:
    table = _table(facts, "id", "class", title="Objects (images) of each class")
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
    table = _table(facts, f"size at {facts.image_size} px", title="Objects by size")
    for name in SIZE_NAMES:
        shares = [part.boxes_per_size[name] / max(part.num_boxes, 1) for part in facts.splits.values()]
        table.add_row(name, *[f"{share:.1%}" for share in shares])
    return table
