"""The training engine and the commands: the only package that knows Lightning.

The files here are the commands, ``python -m engine.NAME``, and `errors`. Each folder holds one subject and imports
only folders below it:

    command_line                               parses and checks configurations, explains mistakes
    loop, inference                            what Lightning calls; prediction and export
    planning, report, run, migration           before, after and beside the training
    validation                                 from predictions to metrics
    training, machine                          one optimizer step; what this machine has
    memory                                     bytes: measured, limited, simulated

Begin with `engine.training.step`, one optimizer step from top to bottom, or with `engine.fit`, a whole run.
"""

from __future__ import annotations

import os

import data  # noqa: F401  keeps albumentations off the network, before anything imports it
from models import cache_folder

os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # its font list, else in the home folder
