"""The suppression inside exported files: how many boxes it lets through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from engine import export
from engine.inference.onnx_nms import append_nms
from engine.run.checkpoint import LoadedNetwork
from models.detection.postprocess import NmsConfig
from models.network import build_network

IDENTITY = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[batch, channels, anchors] images) => (float[batch, channels, anchors] output0)
{ output0 = Identity (images) }
"""


def crowd(num_objects: int) -> np.ndarray:
    """Predictions (1, 4 + 1, A) of so many boxes of one class side by side: center, size and score."""
    number = np.arange(num_objects)
    columns = [number % 100 * 10, number // 100 * 10, np.full(num_objects, 8), np.full(num_objects, 8)]
    return np.stack([*columns, np.linspace(0.9, 0.5, num_objects)])[None].astype(np.float32)


@pytest.mark.parametrize(("options", "num_kept"), [([], 900), (["--max_detections=20"], 20)])
def test_main__lets_all_boxes_of_a_crowd_through(
    options: list[str], num_kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[NmsConfig] = []

    def record(loaded: LoadedNetwork, file_format: str, output: Path, nms: NmsConfig) -> None:
        asked.append(nms)
        output.touch()

    loaded = LoadedNetwork(build_network("yolo11n", 1), "yolo11n", ["a"], 64)
    monkeypatch.setattr(export, "load_network", lambda *_: loaded)
    monkeypatch.setattr(export, "export", record)
    export.main(["--ckpt_path=a.ckpt", "--format=onnx", "--nms", f"--output={tmp_path / 'a.onnx'}", *options])
    model = append_nms(onnx.parser.parse_model(IDENTITY), "output0", asked[0])
    rows = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": crowd(900)})[0]
    assert rows.shape == (num_kept, 7)
