from __future__ import annotations

from types import SimpleNamespace

import pytest
import roofline
from torch.autograd import DeviceType


def test_split_kernels__counts_each_kernel_once() -> None:
    def event(key: str, where: DeviceType, microseconds: float, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, device_type=where, self_device_time_total=microseconds, is_user_annotation=annotation
        )

    events = [
        event("aten::cudnn_convolution", DeviceType.CPU, 40.0), event("sm90_xmma_fprop", DeviceType.CUDA, 40.0),
        event("BatchNormAct", DeviceType.CPU, 10.0), event("_apply_kernel", DeviceType.CUDA, 10.0),
        event("aten::silu", DeviceType.CPU, 5.0), event("vectorized_kernel", DeviceType.CUDA, 12.0),
        event("Optimizer.step#AdamW.step", DeviceType.CUDA, 99.0, annotation=True),
    ]  # fmt: skip
    expected = {"all": 62e-6, roofline.CONVOLUTIONS: 40e-6, roofline.NORM_ACT: 15e-6}
    assert roofline.split_kernels(events) == pytest.approx(expected)
