"""Findings about a data set: wrong files, repeated images, rare classes, tiny objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data.indexing.dataset_facts import SIZE_NAMES, TRAINING_SPLITS, DatasetFacts, imbalance
from engine.machine.diagnosis import Finding

FEW_IMAGES = 10  # of a class in training; too few to learn it from
STRONG_IMBALANCE = 20
MANY_TINY_SHARE = 0.05
MAX_LINES = 20  # of each kind of wrong file; the JSON names them all


def findings_of(facts: DatasetFacts) -> list[Finding]:
    """What to know about a data set before training, the worst first."""
    found = [*_bad_files(facts), *_repeated_images(facts), *_classes(facts), *_sizes(facts)]
    order = {"problem": 0, "note": 1, "ok": 2}
    return sorted(found, key=lambda finding: order[finding.severity])


def _bad_files(facts: DatasetFacts) -> Iterator[Finding]:
    for split, message in facts.refusals.items():
        if split in facts.splits and facts.splits[split].refused:
            continue  # the loop below names each file
        who = "training" if split in TRAINING_SPLITS else f"every command that uses the {split} images"
        yield Finding(f"{split} images", _lines(facts, [message]), f"correct this; {who} refuses to start", "problem")
    for split, part in facts.splits.items():
        if part.refused:
            evidence = f"{_count(len(part.refused), 'wrong label file')}\n{_lines(facts, part.refused)}"
            yield Finding(f"{split} labels", evidence, "correct them", "problem")
        if part.left_out:
            evidence = f"{_count(len(part.left_out), 'unusable image')}\n{_lines(facts, part.left_out)}"
            yield Finding(f"{split} images", evidence, "restore or remove them; training leaves them out", "note")
        if part.notices:
            evidence = ", ".join(f"{kind}: {count}" for kind, count in part.notices.items())
            yield Finding(f"{split} labels", evidence, "check that you want this; training does it by itself", "note")
        for note in part.notes:
            yield Finding(f"{split} path", note, "correct data.yaml if this is not what you want", "note")
        if split not in facts.refusals and not part.left_out:
            yield Finding(f"{split} files", f"{_count(part.num_images, 'image')} and their labels can be read")
    for split, line in facts.missing.items():
        if split not in facts.refusals:
            remedy = "add it if you want to use this split; training does not need it"
            yield Finding(f"{split} path", line, remedy, "note")


def _repeated_images(facts: DatasetFacts) -> Iterator[Finding]:
    advice = "keep each image in one split; scores on images that training has seen are too high"
    if facts.leaks:
        evidence = f"{_count(len(facts.leaks), 'image')} in several splits\n{_groups(facts, facts.leaks)}"
        yield Finding("leakage", evidence, advice, "problem")
    if facts.related:
        count = _count(len(facts.related), "image")
        evidence = f"{count} with copies by Roboflow in several splits\n{_groups(facts, facts.related)}"
        yield Finding("leakage", evidence, advice, "note")
    if not facts.leaks and not facts.related and len(facts.splits) > 1:
        yield Finding("leakage", "no image is in two splits")
    for split, groups in facts.duplicates.items():
        if groups:
            evidence = f"{_count(len(groups), 'image')} present more than once\n{_groups(facts, groups)}"
            yield Finding(f"{split} images", evidence, "remove the copies, unless they shall count twice", "note")


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
        remedy = "show rare classes more often with data.balance.repeat_threshold or data.balance.class_weights"
        yield Finding("balance", f"the most frequent class has {ratio:.0f} x the objects of the rarest", remedy, "note")
    else:
        yield Finding("balance", f"the most frequent class has {ratio:.1f} x the objects of the rarest")


def _sizes(facts: DatasetFacts) -> Iterator[Finding]:
    train = facts.splits["train"]
    share = train.boxes_per_size[SIZE_NAMES[0]] / max(train.num_boxes, 1)
    evidence = f"{share:.1%} of the objects are {SIZE_NAMES[0]} at image size {facts.image_size}"
    if share >= MANY_TINY_SHARE:
        remedy = f"raise data.image_size above {facts.image_size}, or cut tiles; they are smaller than one network cell"
        yield Finding("object size", evidence, remedy, "note")
    else:
        yield Finding("object size", evidence)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _lines(facts: DatasetFacts, lines: list[str]) -> str:
    """The first `MAX_LINES` lines, with paths relative to the data.yaml."""
    folder = f"{Path(facts.file).parent}{os.sep}"
    shown = [f"  {line.replace(folder, '')}" for line in lines[:MAX_LINES]]
    rest = len(lines) - MAX_LINES
    return "\n".join([*shown, f"  and {rest} more (--json lists them all)"] if rest > 0 else shown)


def _groups(facts: DatasetFacts, groups: list[list[str]]) -> str:
    return _lines(facts, [" = ".join(group) for group in groups])
