from __future__ import annotations

import numpy as np
import pytest
import torch

from data.formats.image import read_image
from engine.errors import ConfigError
from engine.inference.predictor import Predictor
from engine.run.checkpoint import LoadedNetwork, load_network
from models.detection.postprocess import NmsConfig
from tests.helpers.checkpoints import Overfitted


def test_detect__refuses_more_tiles_than_anyone_would_wait_for() -> None:
    loaded = LoadedNetwork(torch.nn.Identity(), "yolo11n", ["ic"], 32)
    predictor = Predictor(loaded, NmsConfig(), torch.device("cpu"), tile_px=32, overlap=0.99)
    message = r"^--tile: 32: cuts 640 x 480 pixels into .* tiles, .* Give a larger --tile or a smaller --overlap\.$"
    with pytest.raises(ConfigError, match=message):
        predictor.detect(np.zeros((480, 640, 3), np.uint8))


@pytest.mark.slow
def test_tiles__find_on_a_large_board_what_is_on_each_part(overfitted: Overfitted) -> None:
    """Six boards side by side, looked at in pieces of one board's size without overlap: the same detections."""
    images = [read_image(path) for path in overfitted.images[:6]]
    board = np.vstack([np.hstack(images[:3]), np.hstack(images[3:])])
    nms = NmsConfig(confidence=0.25, multi_label=False)
    device = torch.device("cpu")
    loaded = load_network(overfitted.checkpoint, "--ckpt_path")
    tiled = Predictor(loaded, nms, device, tile_px=96, overlap=0.0).detect(board)
    whole = [Predictor(loaded, nms, device).detect(image) for image in images]
    assert len(tiled.scores) > 3
    # A part of what ends at a border may have been put together with its neighbor's; all others are there.
    for i, found in enumerate(whole):
        offset = torch.tensor([i % 3, i // 3, i % 3, i // 3]) * 96
        inner = ((found.boxes_xyxy_px > 3) & (found.boxes_xyxy_px < 93)).all(dim=1)
        for box in found.boxes_xyxy_px[inner] + offset:
            assert (tiled.boxes_xyxy_px - box).abs().amax(dim=1).min() < 1e-2
