"""A network that detects in images of any size, whole or in tiles."""

from __future__ import annotations

import numpy as np
import torch

from data.augmentation.letterbox import pad_centered, resize_long_side
from data.loading.batch import letterbox_geometry, to_original_px
from engine.errors import ConfigError
from engine.inference.tiling import cover, merge, num_tiles
from engine.run.checkpoint import LoadedNetwork
from engine.validation.evaluation import predict_raw
from models.detection.boxes import decode_boxes
from models.detection.postprocess import Detections, NmsConfig, detections
from models.network import head_strides

MAX_BATCH = 8
"""Most tiles in one forward pass."""
MAX_TILES = 10_000
"""Most tiles of an image, as of 50,000 x 50,000 px in tiles of 640. More are a mistake that would run for hours."""


class Predictor:
    """A network that detects in images of any size."""

    def __init__(
        self, loaded: LoadedNetwork, nms: NmsConfig, device: torch.device, tile_px: int = 0, overlap: float = 0.2
    ) -> None:
        """Put the network on its device.

        Args:
            loaded: The network.
            nms: Limits of non-maximum suppression.
            device: The device to run on.
            tile_px: Side of the tiles in pixels of the image; 0 takes each image as a whole.
            overlap: Overlap of neighboring tiles, as a share of a tile.
        """
        self.network = loaded.network.to(device)
        self.image_size = loaded.image_size
        self.nms = nms
        self.device = device
        self.tile_px = tile_px
        self.overlap = overlap

    def detect(self, image: np.ndarray) -> Detections:
        """Detections on the CPU, in pixels of an image that is uint8 (height, width, 3), RGB.

        Raises:
            ConfigError: If the image would have more than `MAX_TILES` tiles.
        """
        height, width = image.shape[:2]
        if not self.tile_px:
            return self._detect_batch([image])[0]
        if (number := num_tiles(height, width, self.tile_px, self.overlap)) > MAX_TILES:
            rule = f"cuts {width} x {height} pixels into {number:,} tiles, more than {MAX_TILES:,}"
            raise ConfigError(f"--tile: {self.tile_px}: {rule}. Give a larger --tile or a smaller --overlap.")
        tiles = cover(height, width, self.tile_px, self.overlap)
        found: list[Detections] = []
        for start in range(0, len(tiles), MAX_BATCH):
            some = tiles[start : start + MAX_BATCH]
            found += self._detect_batch([image[t.top : t.bottom, t.left : t.right] for t in some])
        return merge(found, tiles, height, width, self.nms.iou, self.nms.limit)

    def _detect_batch(self, images: list[np.ndarray]) -> list[Detections]:
        squares, geometries = [], []
        for image in images:
            resized = resize_long_side(image, self.image_size)
            square, pad = pad_centered(resized, (self.image_size, self.image_size))
            squares.append(torch.from_numpy(square).permute(2, 0, 1))
            geometries.append(letterbox_geometry(image.shape[:2], resized.shape[:2], pad))
        predictions = predict_raw(self.network, torch.stack(squares).to(self.device), "fp32")
        boxes = decode_boxes(predictions, head_strides(self.network))
        found = detections(boxes, predictions["scores"], self.nms)
        return [
            Detections(to_original_px(one.boxes_xyxy_px.cpu(), geometry), one.scores.cpu(), one.classes.cpu())
            for one, geometry in zip(found, geometries, strict=True)
        ]
