"""What is in a data set, and what is wrong with it? ``python -m engine.inspect --root data.yaml``.

Nothing is written into the data set. The exit status is 0, or 2 with the words that training would refuse it with.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.errors import DataError
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.dataset_facts import (
    SIZE_NAMES,
    TRAINING_SPLITS,
    DatasetFacts,
    SplitFacts,
    imbalance,
    inspect_dataset,
)
from engine.command_line.arguments import CommandParser, path_option
from engine.errors import ConfigError, run_command
from engine.machine.diagnosis import Finding
from engine.machine.show import print_findings
from engine.memory.host import available_cores
from models import cache_folder

FEW_IMAGES = 10  # of a class, in training: too few to learn it from
STRONG_IMBALANCE = 20
MANY_TINY_SHARE = 0.05
MAX_LINES = 20  # of each kind of bad file; the JSON names them all
MAX_CLASSES = 60


def findings_of(facts: DatasetFacts) -> list[Finding]:
    """What somebody who is about to train should know, the worst first."""
    found = [*_bad_files(facts), *_repeated_images(facts), *_classes(facts), *_sizes(facts)]
    order = {"problem": 0, "note": 1, "ok": 2}
    return sorted(found, key=lambda finding: order[finding.severity])


def _bad_files(facts: DatasetFacts) -> Iterator[Finding]:
    for split, message in facts.refusals.items():
        if split in facts.splits and facts.splits[split].refused:
            continue  # each is named below
        who = "training" if split in TRAINING_SPLITS else f"every command that uses the {split} images"
        yield Finding(f"{split} images", _lines(facts, [message]), f"{who} refuses to start", "problem")
    for split, part in facts.splits.items():
        if part.refused:
            evidence = f"{_count(len(part.refused), 'wrong label file')}\n{_lines(facts, part.refused)}"
            yield Finding(f"{split} labels", evidence, "correct them", "problem")
        if part.left_out:
            evidence = f"{_count(len(part.left_out), 'unusable image')}\n{_lines(facts, part.left_out)}"
            yield Finding(f"{split} images", evidence, "restore or remove them: training leaves them out", "note")
        if part.notices:
            evidence = ", ".join(f"{kind}: {count}" for kind, count in part.notices.items())
            yield Finding(f"{split} labels", evidence, "training does this itself: is it what you want?", "note")
        for note in part.notes:
            yield Finding(f"{split} path", note, "correct data.yaml, if it is not what you want", "note")
        if split not in facts.refusals and not part.left_out:
            yield Finding(f"{split} files", f"{_count(part.num_images, 'image')} and their labels can be read")
    for split, line in facts.missing.items():
        if split not in facts.refusals:
            yield Finding(f"{split} path", line, "needed only by who uses this split", "note")


def _repeated_images(facts: DatasetFacts) -> Iterator[Finding]:
    advice = "keep each picture in one split: scores on pictures seen in training are too good"
    if facts.leaks:
        evidence = f"{_count(len(facts.leaks), 'image')} in several splits\n{_groups(facts, facts.leaks)}"
        yield Finding("leakage", evidence, advice, "problem")
    if facts.related:
        count = _count(len(facts.related), "picture")
        evidence = f"{count} with copies by Roboflow in several splits\n{_groups(facts, facts.related)}"
        yield Finding("leakage", evidence, advice, "note")
    if not facts.leaks and not facts.related and len(facts.splits) > 1:
        yield Finding("leakage", "no image is in two splits")
    for split, groups in facts.duplicates.items():
        if groups:
            evidence = f"{_count(len(groups), 'image')} there more than once\n{_groups(facts, groups)}"
            yield Finding(f"{split} images", evidence, "remove the copies, unless they are to count double", "note")


def _classes(facts: DatasetFacts) -> Iterator[Finding]:
    for split, part in facts.splits.items():
        missing = [name for name, count in zip(facts.names, part.boxes_per_class, strict=True) if not count]
        if missing:
            evidence = f"without any object: {', '.join(missing[:MAX_LINES])} ({len(missing)} of {len(facts.names)})"
            yield Finding(f"{split} classes", evidence, "add examples, or remove the names from data.yaml", "note")
    train = facts.splits["train"]
    few = [
        f"{name} ({count})"
        for name, count in zip(facts.names, train.images_per_class, strict=True)
        if 0 < count < FEW_IMAGES
    ]
    if few:
        yield Finding("train classes", f"in fewer than {FEW_IMAGES} images: {', '.join(few)}", "add images", "note")
    ratio = imbalance(train)
    if ratio >= STRONG_IMBALANCE:
        remedy = "show rare classes more often: data.balance.repeat_threshold, or data.balance.class_weights"
        yield Finding("balance", f"the most frequent class has {ratio:.0f} x the objects of the rarest", remedy, "note")
    else:
        yield Finding("balance", f"the most frequent class has {ratio:.1f} x the objects of the rarest")


def _sizes(facts: DatasetFacts) -> Iterator[Finding]:
    train = facts.splits["train"]
    share = train.boxes_per_size[SIZE_NAMES[0]] / max(train.num_boxes, 1)
    evidence = f"{share:.1%} of the objects are {SIZE_NAMES[0]} at {facts.image_size}"
    if share >= MANY_TINY_SHARE:
        remedy = f"smaller than one cell of the network: raise data.image_size above {facts.image_size}, or cut tiles"
        yield Finding("object size", evidence, remedy, "note")
    else:
        yield Finding("object size", evidence)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _lines(facts: DatasetFacts, lines: list[str]) -> str:
    """The first of many lines, their paths relative to the data.yaml."""
    folder = f"{Path(facts.file).parent}{os.sep}"
    shown = [f"  {line.replace(folder, '')}" for line in lines[:MAX_LINES]]
    rest = len(lines) - MAX_LINES
    return "\n".join([*shown, f"  and {rest} more (--json names them all)"] if rest > 0 else shown)


def _groups(facts: DatasetFacts, groups: list[list[str]]) -> str:
    return _lines(facts, [" = ".join(group) for group in groups])


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


def main(args: list[str] | None = None) -> None:
    """Inspect a data set."""
    parser = CommandParser(prog="python -m engine.inspect", description=main.__doc__)
    parser.add_argument(
        "--root", type=path_option("--root"), required=True, help="The data.yaml of the data set; only read."
    )
    parser.add_argument(
        "--output", type=path_option("--output"), help="Folder for pictures and inspect.json; made if needed."
    )
    parser.add_argument("--json", action="store_true", help="Print the facts as JSON instead of tables.")
    parser.add_argument("--image_size", type=int, default=640, help="Training size that object sizes are given at.")
    parser.add_argument("--workers", type=int, default=available_cores(), help="Processes that read files.")
    options = parser.parse_args(args)
    if options.image_size < 1:
        raise ConfigError(f"--image_size: {options.image_size}: must be at least 1")
    dataset = read_dataset_yaml(options.root)
    dataset.sources("train")
    facts, indices = inspect_dataset(dataset, options.image_size, cache_folder() / "index", options.workers)
    if options.json:
        json.dump(asdict(facts), sys.stdout, indent=2)
        print()
    else:
        console = Console(markup=False, emoji=False)  # names of classes and files are shown as they are
        print_tables(facts, console)
        print_findings(findings_of(facts), console)
    if options.output:
        from engine.report.dataset_pictures import write_pictures  # matplotlib takes a second

        try:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / "inspect.json").write_text(json.dumps(asdict(facts), indent=2), encoding="utf-8")
            files = write_pictures(options.output, facts, indices)
        except OSError as error:
            raise ConfigError(f"--output: {options.output}: cannot be written ({error.strerror})") from error
        print(f"pictures: {', '.join(str(file) for file in files)}", file=sys.stderr)
    for split in TRAINING_SPLITS:
        if split in facts.refusals:
            raise DataError(facts.refusals[split])


if __name__ == "__main__":
    run_command(main)
