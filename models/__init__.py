"""Pure torch: the networks, their loss, and what reduces the memory and time of both.

    architecture which networks there are, by name or from a YAML file
    network      builds the networks
    detection    the loss, and detections from raw predictions
    recompute    levels that keep fewer activations for backward
    kernels      all Triton kernels
    weights      reads files of weights without running code from them
    precision    the dtype and autocast of computations in FP32

`weights` imports `network`, and `network` imports `architecture` and `detection`. `detection`, `recompute` and
`network` import `kernels` and `precision`. No file imports `data` or Lightning. Begin with `models.detection.loss`.

The networks come from the `ultralytics` package. On import, it looks up a host name, writes a settings file and prints
a message; later it may install packages. The environment variables set here switch this off, or direct the file to the
cache folder. They are set before any module of this package imports `ultralytics`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Path of the cache folder: ``$YOLOFIT_CACHE``, or ``~/.cache/yolofit``; does not create it."""
    if folder := os.environ.get("YOLOFIT_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "yolofit"
    except RuntimeError:  # in some containers, HOME is not set and the system does not know the user
        return Path(tempfile.gettempdir()) / "yolofit"


os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_VERBOSE"] = "false"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_CONFIG_DIR"] = str(cache_folder())
