"""Every figure in README and docs comes from a result file or from code, or is known not to be a measurement."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
OF_OTHER_GENERATORS = {"benchmarks.md", "configuration.md", "accumulation.md"}
PAGES = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in OF_OTHER_GENERATORS)]
FIGURE = r"\d+\.\d+(?![\d.])|\d+ (?=%|s\b|ms\b|µs\b|MB\b|MiB\b|GB\b|GiB\b)"
STATED = {
    "README.md": [
        "Python 3.11 or later",
        "CUDA itself takes 0.5 GiB",  # what the plan assumes
        "Over 95 % of the memory",  # a bound; docs/memory.md has the figure
        "A card of 16 GiB",
        "AGPL-3.0",
    ],
    "fidelity.md": [
        "its 95 % interval",
        "lies above -0.005",  # a margin that is chosen
        "A loss of more than 0.005 mAP",
        "lies below -0.005",
        "contains -0.005",
    ],
    "data-loading.md": [
        # Values of keys, which docs/configuration.md generates.
        "`mosaic` | 1.0 |",
        "`scale` | 0.1, 0.5 |",
        "`hsv_v` | 0.015, 0.7, 0.4 |",
        "`fliplr` | 0, 0.5 |",
        "at 0.5 that is 2.25 times the activations",  # 1.5 squared
        "about 2 ms an image more",
        "the resize (0.9 ms), HSV (0.8) and Python (0.3); from disk, decoding takes 1.2 more",  # benchmarks/NOTES.md
        "Python 3.14",
    ],
    "datasets.md": [
        "more than 1 % of the images",
        "below 0 or above 1 by more than 0.01",
        "sqrt(0.1 / f)",
        "2.3 is two or three times",
    ],
    "distributed.md": [
        "in parts of 25 MiB",
        "once, at the start | 203 MB",  # weights and their average, 4 bytes a parameter
        "leaves 512 MiB free",  # of the card, by `memory.budget: auto`
        "5 x 4 x 25.3 million | 0.47 GiB",
        "over 8 devices | 0.06 GiB",
        "would save 0.4 GiB",
    ],
    "export.md": ["since PyTorch 1.6", "(to 0.001 px in the tests)", "are within 0.005 in the tests"],
    "faults.md": ["more than 1 % of the images", "a file system of 90 MiB"],
    "guide.md": ["`wait` above 10 %", "in up to 200 kB each, and so stays below 5 MB"],
    "memory.md": [
        "CUDA itself takes 0.5 GiB",
        "a budget of 16 GiB",
        "capped at 16 GiB",
        "a difference of 0.1 %",  # of a test
        "with torch 2.11",
    ],
    "migrating.md": [
        # Values of Ultralytics' keys, and its versions.
        "a truth value up to Ultralytics 8.3",
        "from 0, not from 0.1; without `lr0`, 0.01",
        "with their defaults, 0.01 and 0.1",
        "AdamW with momentum 0.9 and a rate of 0.01 / (4 + classes)",
        "MuSGD at 0.01",
    ],
    "recompute.md": ["Over 95 % of the memory"],
    "speed.md": ["capabilities 7.5 and 8.9", "a 16 GiB table", "a card of 8 to 24 GiB"],
    "troubleshooting.md": [
        "driver 546.01 or later",
        "from Python 3.14 on",
        "used at 30 to 40 %",  # what users say
        "above 10 % a line says",
        "AdamW with 0.01, an SGD value, is too much: 0.001 to 0.002",
        '"saves only 20 to 30 %"',
        "over 95 % of the memory",
        "take 0.2 GiB of YOLO11l, not 4 GB",  # two moments of 0.09; what users say
    ],
}
"""By page, figures that are no measurements of ours: values of keys, versions, assumptions, what others say."""


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module
    spec.loader.exec_module(module)
    return module


def without_generated_parts(page: str) -> str:
    """Blank what is code or stands between marks, and keep every position."""
    for pattern in (r"<!-- (\w+) -->.*?<!-- /\1 -->", r"```.*?```", r"`[^`\n]+`", r"\]\([^)]*\)"):
        page = re.sub(pattern, lambda match: re.sub(r"\S", " ", match[0]), page, flags=re.S)
    return page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures__come_from_results_or_are_no_measurements(page: Path, figures: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    known = [span for claim in figures.of_page(page) for span in claim.spans(text)]
    for words in STATED.get(page.name, []):
        pattern = r"\s+".join(re.escape(word) for word in words.split())
        assert re.search(pattern, text), f"{page.name} does not say any more: {words}"
        known += [match.span() for match in re.finditer(pattern, text)]
    unknown = [
        text[max(match.start() - 60, 0) : match.end() + 30].replace("\n", " ")
        for match in re.finditer(FIGURE, without_generated_parts(text))
        if not any(start <= match.start() < end for start, end in known)
    ]
    assert not unknown


def test_claim__writes_its_numbers_and_nothing_else(figures: ModuleType) -> None:
    claim = figures.Claim("README.md", "takes {} of {} GiB", lambda: ["0.5", "12.0"])
    assert figures.written("It takes 1\nof 3,000 GiB.", [claim]) == "It takes 0.5\nof 12.0 GiB."
    with pytest.raises(ValueError, match="0 times"):
        figures.written("It takes none of 3 GiB.", [claim])
