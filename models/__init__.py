"""Pure torch: the network, its loss, and what makes both use less memory. Knows neither `data` nor Lightning.

    network      detectors of `ultralytics.nn`, built
    architecture which detectors there are, by name or from a YAML file
    detection    loss, and detections from raw predictions
    recompute    less memory for activations
    kernels      everything in Triton
    weights      files of weights, read without running anything in them
    precision    where FP32 is kept

Imports go from ``weights`` to ``network``, and from ``network``, ``detection`` and ``recompute`` to ``kernels`` and
``precision``. Begin with `models.detection.loss`.

The network comes from the `ultralytics` package. When that is imported it looks up a host name, writes a settings
file, announces it, and later may install packages: switched off or led to the cache folder here, before any module
of this package imports it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Yolofit's cache folder: ``$YOLOFIT_CACHE``, or ``~/.cache/yolofit``. Not created here."""
    if folder := os.environ.get("YOLOFIT_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "yolofit"
    except RuntimeError:  # no HOME, and a user that the system does not know, as in some containers
        return Path(tempfile.gettempdir()) / "yolofit"


os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_VERBOSE"] = "false"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_CONFIG_DIR"] = str(cache_folder())
