"""From a data set on disk to batches of uint8 images and pixel boxes; numpy, OpenCV and torch only.

The path of an image, one file per step:

    dataset_yaml   what the user points at: class names and the folders of each split
    index, labels  every image path and box of a split, in packed arrays; ``listing`` finds the files, ``scan`` reads
                   them (``coco`` and ``voc`` for other formats), ``index_file`` keeps the result
    sampler        which images make up which window, as ``(epoch, index)`` keys
    dataset        key -> sample: reads the image, then ``augment`` (training) or ``letterbox`` (validation)
    augment        the training recipe: mosaic -> affine -> mixup, cutmix -> colour -> flips -> extra transforms
    partners       which images a sample may be mixed with
    place          mosaic and affine in one step, where the warp only scales and shifts
    cache, shared  decoded pictures, kept once for all workers
    batch, loader  samples -> one `Batch` per window, made by worker processes
    memory         a plan of how much RAM all of this takes

Every random draw of a sample is a function of (seed, epoch, index): the number of workers, the batch size and
the order of reading change nothing. A data set's folder is only ever read.
"""

import os

# albumentations asks the network for a newer version when it is imported; this must be set before that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
