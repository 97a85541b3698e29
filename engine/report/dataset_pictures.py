"""Pictures of a data set: the boxes of each split, and examples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data.indexing.dataset_facts import DatasetFacts
from data.indexing.index import ImageIndex
from engine.report.labels_plot import draw_labels
from engine.report.pictures import draw_examples
from engine.report.style import drawing

log = logging.getLogger(__name__)


def write_pictures(folder: Path, facts: DatasetFacts, indices: dict[str, ImageIndex]) -> list[Path]:
    """Write ``labels_<split>.png`` and ``examples_<split>.png``. A picture that cannot be drawn gives a warning.

    Args:
        folder: An existing folder.
        facts: Facts about the data set.
        indices: The usable images of each split.

    Returns:
        The files that were written.

    Raises:
        OSError: If the disk refuses a file.
    """
    pictures: dict[str, Callable[[Path], None]] = {}
    for split, index in indices.items():
        if len(index):
            pictures[f"labels_{split}.png"] = partial(draw_labels, index, list(facts.names), facts.image_size, split)
            pictures[f"examples_{split}.png"] = partial(draw_examples, index, facts.names)
    with drawing():
        return [folder / name for name, draw in pictures.items() if _is_drawn(folder / name, draw)]


def _is_drawn(file: Path, draw: Callable[[Path], None]) -> bool:
    try:
        draw(file)
    except OSError:  # the disk would refuse the other pictures, too
        raise
    except Exception as error:  # the other pictures and the numbers are still of use
        log.warning(
            "%s: cannot be drawn (%s: %s). The other pictures are not affected.", file, type(error).__name__, error
        )
        log.debug("the cause", exc_info=error)
        return False
    return True
