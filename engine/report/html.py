"""``report.html``: a whole run in one file that needs no network, no script and no other file.

Text from users (names of classes and files, configurations, messages) is escaped. The page's content security policy
forbids browsers to load or run anything.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from engine.report.compact import compact
from engine.report.facts import RunFacts, environment_rows, memory_rows, plan_rows, run_warnings
from engine.report.page import PAGE, STYLE
from engine.report.results_plots import draw_panel, read_history, shown_panels
from engine.report.style import drawing, new_figure

log = logging.getLogger(__name__)
REPORT = "report.html"
MAX_NARROW_CLASSES = 12
"""If there are more classes, a confusion matrix is too fine for the width of a phone and can be scrolled there."""
SHOWN_KEYS = (
    "data.root", "data.image_size", "data.batch_size", "data.micro_batch_size", "data.workers", "model.network",
    "model.weights", "model.precision", "model.recompute", "model.optimizer.name", "model.optimizer.lr",
    "model.schedule.decay", "trainer.max_epochs", "trainer.accelerator", "trainer.devices", "memory.budget",
    "run.patience", "seed_everything",
)  # fmt: skip
"""The keys of the configuration that the report shows at once."""
Section = tuple[str, Callable[[RunFacts], str]]


def write_report(facts: RunFacts) -> Path:
    """Write ``report.html`` from the files of the run folder, and return its path.

    A part that cannot be made is replaced by a message, and gives a warning.
    """
    parts, contents = [], []
    for title, section in SECTIONS:
        try:
            body = section(facts)
        except Exception as error:  # the other parts are still of use
            cause = f"{type(error).__name__}: {error}"
            log.warning("%s: the part '%s' cannot be made (%s)", REPORT, title, cause)
            body = f'<p class="problem">This part cannot be made: {escape(cause)}</p>'
        if body:
            anchor = title.lower().replace(" ", "-")
            contents.append(f'<a href="#{anchor}">{escape(title)}</a>')
            parts.append(f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>')
    page = PAGE.format(
        title=escape(facts.folder.name),
        style=STYLE,
        heading=escape(facts.heading),
        contents=" ".join(contents),
        sections="\n".join(parts),
    )
    path = facts.folder / REPORT
    path.write_text(page, encoding="utf-8", errors="backslashreplace")  # file names may hold bytes that are not UTF-8
    return path


def _summary(facts: RunFacts) -> str:
    tiles = {}
    if (results := facts.results) is not None:
        means = {"mAP50-95": results.map50_95, "mAP50": results.map50}
        means |= {"precision": results.precision, "recall": results.recall}
        tiles = {name: f"{value:.3f}" for name, value in means.items()}
    tiles["epochs"] = f"{facts.num_epochs} of {facts.max_epochs}"
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in tiles.items())
    return f'<div class="tiles">{cells}</div>{_note(facts.about_results) if facts.about_results else ""}'


def _warnings(facts: RunFacts) -> str:
    warnings = run_warnings(facts)
    if not warnings:
        return "<p>None.</p>"
    return "<ul>" + "".join(f'<li class="problem">{escape(text)}</li>' for text in warnings) + "</ul>"


def _memory(facts: RunFacts) -> str:
    timeline = _picture(facts.folder / "memory.png", "Memory over the run.", wide=True)
    breakdown = _picture(facts.folder / "memory_breakdown.png", "The parts of the planned peak.", wide=True)
    return _rows(plan_rows(facts.folder) + memory_rows(facts.folder)) + timeline + breakdown


def _curves(facts: RunFacts) -> str:
    path = facts.folder / "metrics.csv"
    if not path.is_file():
        return _note("No metrics.csv: the run had no CSV logger.")
    history = read_history(path)
    pictures = []
    with drawing():
        for panel in shown_panels(history):
            figure = new_figure(4.2, 2.9)
            draw_panel(figure.subplots(), panel, history)
            file = io.BytesIO()
            figure.savefig(file, format="png")
            pictures.append(_image(file.getvalue(), "image/png", panel.name))
    return f'<div class="grid">{"".join(pictures)}</div>'


def _classes(facts: RunFacts) -> str:
    results = facts.results
    if results is None:
        return ""
    head = ("class", "AP50-95", "AP50", "P", "R", "F1", "true boxes", "training boxes")
    shares = (results.ap50_95_C, results.ap50_C, results.precision_C, results.recall_C, results.f1_C)
    means = (results.map50_95, results.map50, results.precision, results.recall, results.f1)
    trained = facts.num_train_boxes_C
    rows = [_class_row("all classes", None if trained is None else trained.sum(), results.num_truth_C.sum(), means)]
    for c, name in enumerate(results.class_names):
        count = None if trained is None else trained[c]
        rows.append(_class_row(name, count, results.num_truth_C[c], [share[c] for share in shares]))
    header = "".join(f"<th>{name}</th>" for name in head)
    note = f"True boxes are those of validation. P, R and F1 are at confidence {results.confidence:.3f}."
    return f'<div class="scroll"><table class="classes"><tr>{header}</tr>{"".join(rows)}</table></div>{_note(note)}'


def _class_row(name: str, num_train: int | None, num_truth: int, shares: Iterable[float]) -> str:
    counts = "".join(f"<td>{'' if count is None else f'{count:,}'}</td>" for count in (num_truth, num_train))
    cells = "".join(
        f'<td class="share" style="--share:{share:.3f}">{share:.3f}</td>' if share == share else "<td>-</td>"
        for share in shares
    )
    return f"<tr><th>{escape(name)}</th>{cells}{counts}</tr>"


def _confidence(facts: RunFacts) -> str:
    names = ("PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png")
    pictures = [_picture(facts.folder / name) for name in names]
    matrices = ("confusion_matrix_normalized.png", "confusion_matrix.png")
    is_wide = len(facts.results.class_names) > MAX_NARROW_CLASSES if facts.results is not None else False
    pictures += [_picture(facts.folder / name, wide=is_wide) for name in matrices]
    return f'<div class="pair">{"".join(pictures)}</div>' if any(pictures) else ""


def _predictions(facts: RunFacts) -> str:
    pairs = []
    for truth in sorted(facts.folder.glob("val_batch*_labels.jpg")):
        found = truth.with_name(truth.name.replace("_labels", "_pred"))
        pair = _picture(truth, "True boxes.", wide=True)
        pairs.append(pair + _picture(found, f"Detections above confidence {facts.confidence:.2f}.", wide=True))
    return _first_open(pairs, "More validation images")


def _mistakes(facts: RunFacts) -> str:
    caption = (
        f"{facts.num_wrong_images} images have mistakes at confidence {facts.confidence:.2f}. The worst come first. "
        "Red: missed. Orange: false. Green: right. If a detection is right and the label is wrong, correct the label."
    )
    return _picture(facts.folder / "worst_mistakes.jpg", caption, wide=True)


def _training_data(facts: RunFacts) -> str:
    batches = [_picture(path, wide=True) for path in sorted(facts.folder.glob("train_batch*.jpg"))]
    note = _note("Training images as the network gets them, after augmentation.") if batches else ""
    return _picture(facts.folder / "labels.png", wide=True) + note + _first_open(batches, "More training images")


def _configuration(facts: RunFacts) -> str:
    path = facts.folder / "config.yaml"
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    found = [(key, _lookup(config, key)) for key in SHOWN_KEYS]
    table = _rows([(key, str(value)) for key, value in found if value is not None])
    return f"{table}<details><summary>The complete config.yaml</summary><pre>{escape(text)}</pre></details>"


SECTIONS: Sequence[Section] = (
    ("Result", _summary),
    ("Warnings", _warnings),
    ("Losses and metrics", _curves),
    ("Classes", _classes),
    ("Confidence and confusion", _confidence),
    ("Worst mistakes", _mistakes),
    ("Predictions", _predictions),
    ("Memory", _memory),
    ("Training data", _training_data),
    ("Environment", lambda _: _rows(environment_rows())),
    ("Configuration", _configuration),
)


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="facts">{cells}</table>' if cells else ""


def _first_open(parts: Sequence[str], rest: str) -> str:
    """The first part, and the others folded below it, so that each can have the full width of the page."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{parts[0]}<details><summary>{escape(rest)}</summary>{''.join(parts[1:])}</details>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _picture(path: Path, caption: str = "", wide: bool = False) -> str:
    """A picture of the run folder; empty if the file is missing. On a phone, wide pictures can be scrolled."""
    if not path.is_file():
        return ""
    picture = compact(path, "WEBP")
    image = _image(picture.content, picture.mime_type, caption or path.stem.replace("_", " "))
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure{" class=wide" if wide else ""}><div class="scroll">{image}</div>{text}</figure>'


def _image(content: bytes, mime_type: str, description: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:{mime_type};base64,{data}">'
