from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.dataset_facts import inspect_dataset
from engine.report.dataset_findings import findings_of


def test_findings__strong_imbalance_and_tiny_objects_have_a_remedy(tmp_path: Path) -> None:
    # 45 boxes of one class, 40 of them 2.56 x 1.28 px at 640, and one box of another class
    rows = "".join(f"0 0.5 0.5 0.5 0.{i}\n" for i in range(4, 9)) + "1 0.2 0.2 0.02 0.04\n"
    rows += "".join(f"0 {x:.2f} 0.5 0.004 0.004\n" for x in np.linspace(0.1, 0.9, 40))
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((40, 80, 3), np.uint8))[1])
    (tmp_path / "a.txt").write_text(rows)
    (tmp_path / "data.yaml").write_text("train: .\nval: .\nnames: [ic, led, fuse]\n")
    facts, _ = inspect_dataset(read_dataset_yaml(tmp_path / "data.yaml"), 640)
    found = {finding.what: finding for finding in findings_of(facts)}
    assert "45 x the objects" in found["balance"].evidence and "repeat_threshold" in found["balance"].remedy
    assert "87.0% of the objects are below 8 px" in found["object size"].evidence
    assert "raise data.image_size above 640, or cut tiles" in found["object size"].remedy
