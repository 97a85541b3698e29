"""The images from which mosaic, mixup and cutmix take their partners: all of them, or the pool of an image.

A mosaic needs four images. Where all images are kept decoded, partners come from the whole data set: networks learn
faster from windows that share few images (docs/fidelity.md has the measurement). Without such a cache each sample would
read four files. Therefore the order of each epoch is cut into pools of `POOL_SIZE` images, and the partners of an image
come from its own pool:

- The possible partners follow from (seed, epoch) alone, not from workers, devices or batch size.
- Within an epoch every image is equally likely to be a partner; over the epochs every pair is.
- The images of a pool are used within a few consecutive windows, so each file is decoded about once an epoch if the
  last images are kept (`data.loading.cache.RecentImages`).
"""

from __future__ import annotations

import numpy as np

from data.loading.sampler import epoch_order

POOL_SIZE = 64


class PartnerPools:
    """The pools of an epoch.

    Memory: 16 bytes an image, in each process.
    """

    def __init__(self, num_images: int, seed: int, is_whole: bool = False) -> None:
        """Store the arguments; ``seed`` orders the epochs, and ``is_whole`` makes all images one pool."""
        self.num_images = num_images
        self.seed = seed
        self.is_whole = is_whole
        self._epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; costs nothing if the epoch does not change."""
        if epoch != self._epoch:
            self._order = epoch_order(self.num_images, self.seed, epoch)
            self._position = np.empty_like(self._order)
            self._position[self._order] = np.arange(self.num_images)
            self._epoch = epoch

    def position(self, image: int) -> int:
        """Position of an image in the epoch's order."""
        return int(self._position[image])

    def pool(self, image: int) -> np.ndarray:
        """The images that an image may be mixed with, itself included; the last pool also takes the remainder."""
        if self.is_whole:
            return self._order
        last = max(self.num_images // POOL_SIZE - 1, 0)
        number = min(self.position(image) // POOL_SIZE, last)
        stop = self.num_images if number == last else (number + 1) * POOL_SIZE
        return self._order[number * POOL_SIZE : stop]

    def __getstate__(self) -> dict[str, object]:
        """Without the epoch's arrays: a worker computes its own."""
        return {"num_images": self.num_images, "seed": self.seed, "is_whole": self.is_whole, "_epoch": None}
