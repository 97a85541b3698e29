"""What happens in each training step, and the commands: the only package that knows Lightning."""

from __future__ import annotations

import os

import data  # noqa: F401  keeps albumentations off the network, before anything imports it
from models import cache_folder

os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # its font list, else in the home folder
