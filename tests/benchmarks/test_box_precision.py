from __future__ import annotations

import box_precision


def test_box_losses__are_nothing_in_fp32_and_far_apart_in_bf16() -> None:
    exact, rounded = (box_precision.box_losses(640, precision, seed=0) for precision in ("fp32", "bf16"))
    assert max(exact.values()) < 1e-5  # fp32 rounds coordinates of some hundred pixels
    assert rounded["yolofit"] < 1e-3 < rounded["ultralytics"]
