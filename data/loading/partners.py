"""Which images a sample may be mixed with: the ones that are read at about the same time.

A mosaic needs four images. Drawn from the whole data set, each sample would read four files where Ultralytics reads
one: it draws from a buffer of the images that the worker happens to have read, so its mosaics depend on the number
of workers and the batch size, and the first one is a single image four times.

Here each epoch's order is cut into pools of `POOL_SIZE` images, and an image's partners are drawn from its own pool:

- who may meet whom follows from (seed, epoch) alone, not from workers, devices or batch size;
- within an epoch every image has the same chance of being a partner; over the epochs, as each has a new order, every
  pair is equally likely;
- a pool's images are used within a few consecutive windows, so each file is read and decoded about once an epoch, if
  the last ones are kept (`data.loading.cache.RecentImages`).

The pool is larger than a common window: the tiles of one window come from more images than the window has.
"""

from __future__ import annotations

import numpy as np

from data.loading.sampler import epoch_order

POOL_SIZE = 64


class PartnerPools:
    """The pools of one epoch after the other.

    Memory: 16 bytes an image, in each process.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images = num_images
        self.seed = seed
        self._epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; cheap if it is the one of before."""
        if epoch != self._epoch:
            self._order = epoch_order(self.num_images, self.seed, epoch)
            self._position = np.empty_like(self._order)
            self._position[self._order] = np.arange(self.num_images)
            self._epoch = epoch

    def position(self, image: int) -> int:
        """Where an image stands in the epoch's order."""
        return int(self._position[image])

    def pool(self, image: int) -> np.ndarray:
        """The images that an image may be mixed with, itself included; the last pool takes the remainder too."""
        last = max(self.num_images // POOL_SIZE - 1, 0)
        number = min(self.position(image) // POOL_SIZE, last)
        stop = self.num_images if number == last else (number + 1) * POOL_SIZE
        return self._order[number * POOL_SIZE : stop]

    def __getstate__(self) -> dict[str, object]:
        """Without the epoch's arrays: a worker makes its own."""
        return {"num_images": self.num_images, "seed": self.seed, "_epoch": None}
