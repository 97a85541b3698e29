"""The callback that leaves pictures and ``report.html`` in the run folder, and sends the pictures to the loggers.

Nothing is drawn between the first steps and the end of training: until then, validations only leave behind what the
metrics hold anyway. A picture that cannot be drawn is named in a warning, and the run goes on.
"""

from __future__ import annotations

import logging
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
from engine.validation.metrics import CONFUSION_CONFIDENCE, DetectionResults

log = logging.getLogger(__name__)
NUM_BATCHES = 3
"""Training windows, and sheets of validation images, that are drawn."""
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
"""What goes to the loggers, as far as it is there."""
WATCHED = ("engine", "data", "models")
"""Loggers whose warnings go into the report."""


class RunReporter(L.Callback):
    """Draws the first windows at the start of training, everything else at its end, and writes the report."""

    def __init__(self, folder: Path, findings: Sequence[Finding] = ()) -> None:
        """Begin to collect warnings.

        Args:
            folder: The run folder.
            findings: Advice on the run, for the report; may grow until the end.
        """
        self.folder = folder
        self.findings = findings
        self._warnings = WarningCollector()
        self._warnings.listen()
        self._paths: list[str] = []
        self._best: DetectionResults | None = None
        self._best_records: list[ImageRecord] = []
        self._best_epoch = 0
        self._first_epoch = 1
        """Of this process: a run that goes on counts on."""
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
        """Forget the images of the validation before."""
        self._paths = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note which images these are."""
        self._paths += batch.names

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what the best epoch has found."""
        results = getattr(pl_module, "results", None)
        if trainer.sanity_checking or not trainer.is_global_zero or results is None:
            return
        if is_better(results.map50_95, None if self._best is None else self._best.map50_95):
            self._best, self._best_epoch = results, trainer.current_epoch + 1
            self._attempt("records of validation", lambda: self._keep_records(pl_module), "training is not affected")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw everything and write the report."""
        self._finish(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Report what there is, if training had begun."""
        if self._has_begun:
            reason = f"{type(exception).__name__}: {exception}".rstrip(": ")
            self._warnings.messages.append(f"the run ended early: {reason}")
            self._finish(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Collect no more warnings."""
        stop_listening()

    def _keep_records(self, module: L.LightningModule) -> None:
        self._best_records = collect_records(module.evaluation.metrics, self._paths)

    def _finish(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._is_done or not trainer.is_global_zero:
            return
        self._is_done = True
        self._draw_metrics()
        facts = self._facts(trainer, module)
        self._draw_images(facts, module.class_names)
        consequence = "the pictures in the run folder are there all the same"
        for path in self._pictures():
            send = partial(send_pictures, trainer.loggers, [path], trainer.global_step)
            self._attempt(f"{path.name} for the loggers", send, consequence)
        if self._attempt(REPORT, lambda: write_report(facts), consequence):
            print(f"report: {self.folder / REPORT}")

    def _draw_metrics(self) -> None:
        history, results = self.folder / "metrics.csv", self._best
        if history.is_file():
            self._draw("results.png", lambda path: draw_results(read_history(history), path))
        for name, draw in (curve_pictures(results) if results is not None else {}).items():
            self._draw(name, draw)

    def _draw_images(self, facts: RunFacts, class_names: list[str]) -> None:
        records, confidence = self._best_records, facts.confidence
        if not records:
            return
        for number in range(min(NUM_BATCHES, -(-len(records) // TILES))):
            shown = records[number * TILES : (number + 1) * TILES]
            self._draw(f"val_batch{number}_labels.jpg", partial(draw_truth, shown, class_names, confidence))
            self._draw(f"val_batch{number}_pred.jpg", partial(draw_found, shown, class_names, confidence))
        mistakes = partial(draw_mistakes, records, class_names, confidence)
        facts.num_wrong_images = self._draw("worst_mistakes.jpg", mistakes) or 0

    def _facts(self, trainer: L.Trainer, module: L.LightningModule) -> RunFacts:
        index, results = _train_index(trainer), self._best
        num_classes = len(module.class_names)
        data = f", {len(index):,} training images" if index is not None else ""
        facts = RunFacts(
            folder=self.folder,
            heading=f"{module.config.network}, {num_classes} classes, {module.image_size} px{data}",
            num_epochs=trainer.current_epoch,
            max_epochs=trainer.max_epochs,
            results=results,
            messages=[*self._warnings.messages, *(_sentence(x) for x in self.findings if x.severity != "ok")],
        )
        if index is not None:
            facts.num_train_boxes_C = np.bincount(index.classes, minlength=num_classes)
        best = read_best(self.folder / CHECKPOINTS / BEST)
        facts.about_results = "" if best is None else f"best.ckpt holds {best}."
        if results is not None:
            since = " since the run went on" if self._first_epoch > 1 else ""
            facts.about_results = (
                f"Epoch {self._best_epoch}, the best one by mAP50-95{since}, on {results.num_images:,} validation "
                f"images: numbers by class, curves and pictures are of this epoch. {facts.about_results}"
            )
            best_f1 = np.nan_to_num(results.confidence, nan=CONFUSION_CONFIDENCE)
            facts.confidence = float(np.clip(best_f1, MIN_SHOWN_CONFIDENCE, CONFUSION_CONFIDENCE))
        return facts

    def _pictures(self) -> list[Path]:
        return [path for pattern in PICTURES for path in sorted(self.folder.glob(pattern))]

    def _draw(self, name: str, draw: Callable[[Path], Any]) -> Any:
        with drawing():
            return self._attempt(name, lambda: draw(self.folder / name), "training is not affected")

    def _attempt(self, what: str, make: Callable[[], Any], consequence: str) -> Any:
        """Make something that is not worth losing a run for; what goes wrong is a warning, and None comes back."""
        try:
            return make()
        except Exception as error:  # whatever it is: the weights are worth more than a picture
            cause = " ".join(f"{type(error).__name__}: {error}".split())  # one line
            log.warning("%s: %s cannot be made (%s): %s", self.folder, what, cause, consequence)
            log.debug("the cause", exc_info=error)
            return None


class WarningCollector(logging.Handler):
    """Keeps the text of each warning, and shows it as before."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def listen(self) -> None:
        """Collect from now on, in place of the collector of a run before this one that failed or never began."""
        stop_listening()
        for name in WATCHED:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one; Python shows what nobody handles, so what only this handler handles is shown here."""
        self.messages.append(record.getMessage())
        if not logging.root.handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)


def stop_listening() -> None:
    """Let no collector listen."""
    for logger in map(logging.getLogger, WATCHED):
        for handler in [handler for handler in logger.handlers if isinstance(handler, WarningCollector)]:
            logger.removeHandler(handler)


def _train_index(trainer: L.Trainer) -> ImageIndex | None:
    """The training images and boxes, where the run's data are ours."""
    source = getattr(getattr(trainer.datamodule, "train_dataset", None), "source", None)
    return getattr(source, "index", None)


def _sentence(finding: Finding) -> str:
    return ": ".join(part for part in (finding.what, finding.evidence, finding.remedy) if part)
