"""The callback that leaves pictures and ``report.html`` in the run folder, and sends the pictures to the loggers.

It draws the first windows, and everything else at the end of training. In between, it only keeps records of the best
validation. A picture that cannot be drawn causes a warning, and the run continues.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from data.indexing.index import ImageIndex
from data.loading.batch import Batch
from engine.loop.loggers import send_pictures
from engine.machine.diagnosis import Finding
from engine.report.curves import curve_pictures
from engine.report.facts import RunFacts
from engine.report.html import REPORT, write_report
from engine.report.labels_plot import draw_labels
from engine.report.mistakes import ImageRecord, collect_records
from engine.report.pictures import TILES, draw_found, draw_mistakes, draw_train_batch, draw_truth
from engine.report.results_plots import draw_results, read_history
from engine.report.style import drawing
from engine.run.best_checkpoint import is_better, read_best
from engine.run.folder import BEST, CHECKPOINTS
from engine.run.logs import METRICS
from engine.validation.metrics import CONFUSION_CONFIDENCE, DetectionResults

log = logging.getLogger(__name__)
NUM_BATCHES = 3
"""Number of drawn training windows, and of drawn sheets of validation images."""
MIN_SHOWN_CONFIDENCE = 0.05
PICTURES = (
    "results.png",
    "*_curve.png",
    "confusion_matrix*.png",
    "val_batch*.jpg",
    "worst_mistakes.jpg",
    "labels.png",
    "train_batch*.jpg",
    "memory*.png",
)
"""Pictures for the loggers, if they exist."""
WATCHED = ("engine", "data", "models")
"""Loggers whose warnings the report shows."""


class RunReporter(L.Callback):
    """Draws the first windows at the start of training and everything else at its end, and writes the report."""

    def __init__(self, folder: Path, findings: Sequence[Finding] = ()) -> None:
        """Begin to collect warnings; ``findings``, advice for the report, may grow until the end."""
        self.folder = folder
        self.findings = findings
        self._warnings = WarningCollector()
        self._warnings.listen()
        self._paths: list[str] = []
        self._best: DetectionResults | None = None
        self._best_records: list[ImageRecord] = []
        self._best_epoch = 0
        self._first_epoch = 1
        """The first epoch of this process, counted from 1."""
        self._has_begun = False
        self._is_done = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the statistics of the training boxes."""
        self._has_begun, self._first_epoch = True, trainer.current_epoch + 1
        index = _train_index(trainer)
        if trainer.is_global_zero and index is not None:
            draw = partial(draw_labels, index, pl_module.class_names, pl_module.image_size, "train")
            self._draw("labels.png", draw)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Draw the first windows of the run."""
        if trainer.is_global_zero and trainer.current_epoch == 0 and batch_idx < NUM_BATCHES:
            draw = partial(draw_train_batch, batch, pl_module.class_names)
            self._draw(f"train_batch{batch_idx}.jpg", draw)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the images of the last validation."""
        self._paths = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Keep the paths of the images."""
        self._paths += batch.names

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the records of the best epoch."""
        results = getattr(pl_module, "results", None)
        if trainer.sanity_checking or not trainer.is_global_zero or results is None:
            return
        if is_better(results.map50_95, None if self._best is None else self._best.map50_95):
            self._best, self._best_epoch = results, trainer.current_epoch + 1
            self._attempt("records of validation", partial(self._keep_records, pl_module), "training is not affected")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw everything and write the report."""
        self._finish(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the report although the run has failed, if training had begun."""
        if self._has_begun:
            reason = f"{type(exception).__name__}: {exception}".rstrip(": ")
            self._warnings.messages.append(f"the run ended early: {reason}")
            self._finish(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop collecting warnings."""
        stop_listening()

    def _keep_records(self, module: L.LightningModule) -> None:
        self._best_records = collect_records(module.evaluation.metrics, self._paths)

    def _finish(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._is_done or not trainer.is_global_zero:
            return
        self._is_done = True
        self._draw_metrics()
        confidence = self._shown_confidence()
        facts = self._facts(trainer, module, confidence, self._draw_images(module.class_names, confidence))
        consequence = "the pictures in the run folder are not affected"
        for path in self._pictures():
            send = partial(send_pictures, trainer.loggers, [path], trainer.global_step)
            self._attempt(f"{path.name} for the loggers", send, consequence)
        if self._attempt(REPORT, lambda: write_report(facts), consequence):
            print(f"report: {self.folder / REPORT}")

    def _draw_metrics(self) -> None:
        history, results = self.folder / METRICS, self._best
        if history.is_file():
            self._draw("results.png", lambda path: draw_results(read_history(history), path))
        for name, draw in (curve_pictures(results) if results is not None else {}).items():
            self._draw(name, draw)

    def _draw_images(self, class_names: list[str], confidence: float) -> int:
        """Draw validation images with detections above ``confidence``; return the number of images with mistakes."""
        records = self._best_records
        if not records:
            return 0
        for number in range(min(NUM_BATCHES, -(-len(records) // TILES))):
            shown = records[number * TILES : (number + 1) * TILES]
            self._draw(f"val_batch{number}_labels.jpg", partial(draw_truth, shown, class_names, confidence))
            self._draw(f"val_batch{number}_pred.jpg", partial(draw_found, shown, class_names, confidence))
        return self._draw("worst_mistakes.jpg", partial(draw_mistakes, records, class_names, confidence)) or 0

    def _shown_confidence(self) -> float:
        """Return the confidence of the best F1, within what pictures can show; NaN without a validation."""
        if self._best is None:
            return math.nan
        best_f1 = np.nan_to_num(self._best.confidence, nan=CONFUSION_CONFIDENCE)
        return float(np.clip(best_f1, MIN_SHOWN_CONFIDENCE, CONFUSION_CONFIDENCE))

    def _facts(self, trainer: L.Trainer, module: L.LightningModule, confidence: float, num_wrong: int) -> RunFacts:
        index, results, num_classes = _train_index(trainer), self._best, len(module.class_names)
        data = f", {len(index):,} training images" if index is not None else ""
        best = read_best(self.folder / CHECKPOINTS / BEST)
        about_results = "" if best is None else f"best.ckpt holds {best}."
        if results is not None:
            since = " since the run was resumed" if self._first_epoch > 1 else ""
            about_results = (
                f"Epoch {self._best_epoch}, the best one by mAP50-95{since}, on {results.num_images:,} validation "
                f"images: numbers by class, curves and pictures are of this epoch. {about_results}"
            )
        return RunFacts(
            folder=self.folder,
            heading=f"{module.config.network}, {num_classes} classes, {module.image_size} px{data}",
            num_epochs=trainer.current_epoch,
            max_epochs=trainer.max_epochs,
            results=results,
            about_results=about_results,
            num_train_boxes_C=None if index is None else np.bincount(index.classes, minlength=num_classes),
            confidence=confidence,
            num_wrong_images=num_wrong,
            messages=[*self._warnings.messages, *(_sentence(x) for x in self.findings if x.severity != "ok")],
        )

    def _pictures(self) -> list[Path]:
        return [path for pattern in PICTURES for path in sorted(self.folder.glob(pattern))]

    def _draw(self, name: str, draw: Callable[[Path], Any]) -> Any:
        with drawing():
            return self._attempt(name, lambda: draw(self.folder / name), "training is not affected")

    def _attempt(self, what: str, make: Callable[[], Any], consequence: str) -> Any:
        """Make something that is not worth losing a run for; an error becomes a warning and returns None."""
        try:
            return make()
        except Exception as error:  # any error: the weights are worth more than a picture
            cause = " ".join(f"{type(error).__name__}: {error}".split())  # one line
            log.warning("%s: %s cannot be made (%s): %s", self.folder, what, cause, consequence)
            log.debug("the cause", exc_info=error)
            return None


class WarningCollector(logging.Handler):
    """Keeps the text of each warning, and still shows it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def listen(self) -> None:
        """Collect from now on, instead of the collector of an earlier run that failed."""
        stop_listening()
        for name in WATCHED:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning; show it if no other handler does."""
        self.messages.append(record.getMessage())
        if not logging.root.handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)


def stop_listening() -> None:
    """Remove all collectors."""
    for logger in map(logging.getLogger, WATCHED):
        for handler in [handler for handler in logger.handlers if isinstance(handler, WarningCollector)]:
            logger.removeHandler(handler)


def _train_index(trainer: L.Trainer) -> ImageIndex | None:
    """Return the index of the training images, if the data module is yolofit's."""
    source = getattr(getattr(trainer.datamodule, "train_dataset", None), "source", None)
    return getattr(source, "index", None)


def _sentence(finding: Finding) -> str:
    return ": ".join(part for part in (finding.what, finding.evidence, finding.remedy) if part)
