"""Random color changes that the loader leaves to the device."""

from __future__ import annotations

from dataclasses import replace

from data.loading.batch import Batch
from models.kernels.triton_support import fused_kernels_work


def colored(batch: Batch, fused_kernels: bool) -> Batch:
    """`Batch.colored`, in one fused kernel if ``fused_kernels`` is true and fused kernels work here."""
    if batch.hsv_gains_B3 is None or not (fused_kernels and fused_kernels_work(batch.images)):
        return batch.colored()
    from models.kernels.fused_color import shift_hsv  # needs Triton

    return replace(batch, images=shift_hsv(batch.images, batch.hsv_gains_B3), hsv_gains_B3=None)
