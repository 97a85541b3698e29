"""The user's own Albumentations transforms, after the built-in augmentation."""

from __future__ import annotations

import warnings

import albumentations as A
import numpy as np

from data.augmentation.picture import LabelledImage
from data.errors import DataError

MAX_SEED = 2**32


class ExtraTransforms:
    """A list of Albumentations transforms for image and boxes, seeded anew for every sample."""

    def __init__(self, transforms: list[A.BasicTransform]) -> None:
        boxes = A.BboxParams(format="pascal_voc", label_fields=["classes"], clip=True, filter_invalid_bboxes=True)
        with warnings.catch_warnings():
            # Albumentations warns if no transform changes boxes, as with color transforms
            warnings.filterwarnings("ignore", message="Got processor for bboxes")
            self.compose = A.Compose(transforms, bbox_params=boxes)

    def __call__(self, picture: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        """Apply the transforms to a square image; one draw of the sample's generator seeds them.

        Raises:
            DataError: If the transforms fail, or change the size or the type of the image.
        """
        self.compose.set_random_seed(int(rng.integers(MAX_SEED)))
        try:
            result = self.compose(image=picture.image, bboxes=picture.boxes_xyxy_px, classes=picture.classes)
        except Exception as error:  # the user's transforms may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"data.transforms: {reason}: the transform failed. Correct it or leave it out.") from None
        image = result["image"]
        if getattr(image, "shape", None) != picture.image.shape or image.dtype != np.uint8:
            raise DataError(
                f"data.transforms: {image.dtype} {tuple(image.shape)}: the image was uint8 {picture.image.shape}. "
                f"Leave out transforms that resize, normalise or convert it."
            )
        boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        return LabelledImage(image, boxes, np.asarray(result["classes"], np.int32))
