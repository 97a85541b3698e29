"""From a data set on disk to batches of uint8 images and pixel boxes; numpy, OpenCV and torch only.

    formats        files: data.yaml, label files, COCO, VOC, images
    indexing       every image path and box of a split, in packed arrays
    augmentation   the training recipe: mosaic -> affine -> mixup, cutmix -> color -> flips -> extra transforms
    loading        keys -> samples -> one `Batch` per window, made by worker processes, within a plan of RAM
    boards         drawn boards, a data set without a download; ``python -m data.synthetic`` writes one

Imports go from ``loading`` to ``augmentation`` and ``indexing``, and from there to ``formats``. Begin to read with
`data.loading.dataset`.

Every random draw of a sample depends on (seed, epoch, index) alone, not on workers, batch size or reading order.
yolofit only reads the folder of a data set.
"""

import os

# albumentations asks the network for a newer version when it is imported; this must be set before that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
