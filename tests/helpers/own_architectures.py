"""Ten small architectures of our own, as users write them, each with something that no family of Ultralytics has."""

from __future__ import annotations

from pathlib import Path

import yaml

OWN = {path.stem: path for path in sorted((Path(__file__).parent / "architectures").glob("*.yaml"))}
"""Their files, by name."""
NUM_CLASSES = 5


def num_classes(path: Path) -> int:
    """Classes of a file that says how many."""
    return yaml.safe_load(path.read_text(encoding="utf-8")).get("nc", NUM_CLASSES)
