"""What happens in each training step, and the commands: the only package that knows Lightning."""

from __future__ import annotations

import os

from models import cache_folder

os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # its font list, else in the home folder
