"""What ``engine.validate`` refuses; `test_fit.py` and `inference/test_export_formats.py` test its numbers."""

from __future__ import annotations

import pytest

from engine.errors import ConfigError
from engine.validate import main as validate


def test_validate__refuses_to_measure_nothing() -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.limit_val_batches: 0: .*: leave it out, or set .* 1\.0$"):
        validate(["--data.root=data.yaml", "--ckpt_path=best.ckpt", "--trainer.limit_val_batches=0"])
