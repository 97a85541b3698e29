"""The report: complete, self-contained, harmless, and rendered by a real browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.memory.probe import MemorySample
from engine.memory.units import GIB
from engine.report import html
from engine.report.curves import curve_pictures
from engine.report.facts import RunFacts, memory_rows, plan_rows, run_warnings
from engine.report.html import write_report
from engine.report.memory_log import MemoryLog
from engine.report.style import drawing
from tests.helpers.report import write_history
from tests.helpers.results import HOSTILE_NAME, make_metrics

NAMES = ["ic", HOSTILE_NAME, "전해 커패시터"]
MAX_REPORT_BYTES = 5_000_000
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def facts(tmp_path: Path) -> RunFacts:
    """A run folder as a GPU run leaves it, and what is known beside it."""
    write_history(tmp_path / "metrics.csv", num_epochs=12, best=3, **{"train/skipped_windows": 2})
    plan = {
        "device": "cuda:0", "budget_bytes": 14 * GIB, "micro_batch": 16, "accumulate": 2, "recompute": "elementwise",
        "precision": "fp16", "image_size": 640, "peak_bytes": 4 * GIB,
        "components": {"activations": 3 * GIB, "weights": GIB // 2, "cuda_context": GIB // 2, "loss": 0},
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    log = MemoryLog(tmp_path / "memory.csv")
    sample = MemorySample(3 * GIB, int(3.3 * GIB), int(3.2 * GIB), 5 * GIB, 16 * GIB, 97, 60)
    log.write(1, "train", sample, 50.0, [])
    log.write(2, "train", sample, 60.0, ["oom recovery"])
    log.close()
    (tmp_path / "config.yaml").write_text(f"data:\n  root: {HOSTILE_NAME!r}\n  batch_size: 32\n", encoding="utf-8")
    results = make_metrics(NAMES).compute()
    with drawing():
        for name, draw in curve_pictures(results).items():
            draw(tmp_path / name)
    return RunFacts(
        folder=tmp_path,
        heading=f"yolo11l, {HOSTILE_NAME}",
        num_epochs=12,
        max_epochs=12,
        results=results,
        num_train_boxes_C=np.array([1000, 20, 0]),
        confidence=0.25,
        messages=[f"images of {HOSTILE_NAME}"],
    )


class Page(HTMLParser):
    """Tags, their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report__holds_every_part(facts: RunFacts) -> None:
    page = Page(write_report(facts).read_text())
    for title in ("Result", "Warnings", "Losses and metrics", "Classes", "Confidence and confusion", "Memory",
                  "Environment", "Configuration"):  # fmt: skip
        assert title in page.text
    assert "cannot be made" not in page.text
    assert f"{facts.results.map50_95:.3f}" in page.text and f"{facts.results.ap50_C[1]:.3f}" in page.text
    assert "전해 커패시터" in page.text and "4.0 GiB" in page.text and "batch_size: 32" in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 8 + 4 + 2  # panels, curves, matrices


def test_report__needs_nothing_but_itself(facts: RunFacts) -> None:
    page = Page(write_report(facts).read_text())
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/", "#")), attributes[name]
    assert "url(" not in page.text and "@import" not in page.text
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_report__escapes_what_comes_from_users(facts: RunFacts) -> None:
    text = write_report(facts).read_text()
    assert "<script" not in text
    assert Page(text).text.count(HOSTILE_NAME) >= 4  # heading, class, warnings, configuration: as it was written


def test_report__names_a_file_whose_name_is_no_utf8(facts: RunFacts) -> None:
    facts.messages.append("a\udcb1.jpg is gone")
    assert "a\\udcb1.jpg is gone" in write_report(facts).read_text(encoding="utf-8")


def test_report__images_are_whole(facts: RunFacts) -> None:
    text = write_report(facts).read_text()
    contents = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert contents and all(base64.b64decode(content).startswith(b"\x89PNG") for content in contents)


def test_report__a_part_that_fails_leaves_the_others(facts: RunFacts, caplog: pytest.LogCaptureFixture) -> None:
    (facts.folder / "plan.json").write_text("{ half")
    page = Page(write_report(facts).read_text())
    assert page.text.count("This part cannot be made: JSONDecodeError") == 2
    assert "Losses and metrics" in page.text and "Environment" in page.text
    assert [message for message in caplog.messages if "the part 'Memory' cannot be made" in message]


def test_report__of_a_run_without_validation(tmp_path: Path) -> None:
    page = Page(write_report(RunFacts(tmp_path, "yolo11n", num_epochs=0, max_epochs=3)).read_text())
    assert "0 of 3" in page.text and "cannot be made" not in page.text
    assert "No metrics.csv" in page.text


def test_plan_and_measurement__stand_side_by_side(facts: RunFacts) -> None:
    rows = dict(plan_rows(facts.folder) + memory_rows(facts.folder))
    assert rows["budget"] == "14.0 GiB" and rows["planned peak"] == "4.0 GiB"
    assert rows["planned peak, by part"] == "activations 3.0 GiB, weights 512.0 MiB, cuda_context 512.0 MiB"
    assert rows["measured: reserved"] == "3.3 GiB" and rows["images/s, median"] == "55.0"
    assert rows["planned peak against reserved plus CUDA"] == f"{4 / (3.3 + 0.5) - 1:+.1%}"


def test_warnings__say_what_the_results_must_be_read_with(facts: RunFacts) -> None:
    warnings = "\n".join(run_warnings(facts))
    for sentence in (
        "24 optimizer steps were skipped",
        "the best epoch is 3 of 12",
        "no training box at all: 전해 커패시터",
        f"fewer than 50 training boxes: {HOSTILE_NAME} (20)",
        "has 50 times as many training boxes as the rarest",
        "memory ran out 1 times",
    ):
        assert sentence in warnings
    assert len(run_warnings(facts)) == 7


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed: the report is not rendered")
@pytest.mark.parametrize("width_px", [390, 1200])
def test_report__renders_in_a_browser(facts: RunFacts, width_px: int) -> None:
    """On a phone nothing is wider than the screen: a frame as wide as one is filled, and its right edge is white."""
    report = write_report(facts)
    frame = facts.folder / "frame.html"
    style = f"width:{width_px}px;height:6000px;border:0"
    frame.write_text(f'<body style="margin:0;background:#ff00ff"><iframe src="{report.name}" style="{style}"></iframe>')
    picture = facts.folder / "shot.png"
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
    command = [BROWSER, *options, f"--user-data-dir={facts.folder / 'profile'}", "--window-size=1300,6000"]
    subprocess.run([*command, f"--screenshot={picture}", frame.as_uri()], capture_output=True, timeout=200, check=True)
    pixels = np.asarray(Image.open(picture).convert("RGB"))[:, :width_px]
    ink = (pixels.min(axis=2) < 200).mean()
    assert 0.01 < ink < 0.5  # there is a page, and it is no error page in one color
    assert (pixels[:, -10:] == 255).all()  # the margin on the right is free: nothing sticks out
    assert (pixels[2000:3000] < 200).any()  # pictures are there, far down


def test_sections__have_names_of_their_own() -> None:
    titles = [title for title, _ in html.SECTIONS]
    assert len(set(titles)) == len(titles)


def test_report__of_a_big_run_with_detailed_pictures_stays_small(tmp_path: Path) -> None:
    """Eighty classes, all pictures that a run leaves, each contact sheet of noise, which no format makes small."""
    names = [f"component {c}" for c in range(80)]
    write_history(tmp_path / "metrics.csv", num_epochs=300)
    results = make_metrics(names, num_images=60).compute()
    with drawing():
        for name, draw in curve_pictures(results).items():
            draw(tmp_path / name)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1728, 1620, 3), np.uint8))
    sheets = [f"val_batch{i}_{kind}" for i in range(3) for kind in ("labels", "pred")]
    for name in [*sheets, *(f"train_batch{i}" for i in range(3)), "worst_mistakes"]:
        noise.save(tmp_path / f"{name}.jpg")
    for name in ("labels", "memory", "memory_breakdown"):
        noise.save(tmp_path / f"{name}.png")
    facts = RunFacts(tmp_path, "yolo11l", 300, 300, results, num_train_boxes_C=np.full(80, 9), confidence=0.25)
    report = write_report(facts)
    assert report.stat().st_size < MAX_REPORT_BYTES
    embedded = re.findall(r'src="data:image/(?:png|jpeg|webp);base64,([^"]+)"', report.read_text())
    assert len(embedded) == 8 + len(curve_pictures(results)) + 13
    for content in embedded:
        assert Image.open(io.BytesIO(base64.b64decode(content))).width >= 600
