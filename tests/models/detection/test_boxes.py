"""Anchors, decoding and overlaps, against hand-derived numbers and the Ultralytics functions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.tal import dist2bbox, make_anchors

from models.detection import boxes as boxes_module
from models.detection.boxes import aligned_ciou, anchor_points, decode_boxes, pairwise_ciou
from tests.helpers.storage import StorageMeter

STRIDES = (8, 16, 32)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of Triton's kernels; without a GPU, in its interpreter


def random_predictions(num_images: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> dict:
    generator = torch.Generator().manual_seed(0)
    feats = [torch.zeros(num_images, 1, height // stride, width // stride, dtype=dtype) for stride in STRIDES]
    num_anchors = sum(feat[0].numel() for feat in feats)
    logits = torch.randn(num_images, 64, num_anchors, generator=generator) * 3
    return {"boxes": logits.to(dtype), "feats": feats}


def random_boxes(count: int, seed: int, size: float = 100.0) -> Tensor:
    """Corner boxes (count, 4) in FP64, with sides from almost 0 to ``size``."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size
    sides = torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 3 * size
    return torch.cat([corner, corner + sides], 1)


class TestAnchorPoints:
    def test_anchor_points__small_grid_by_hand(self) -> None:
        points, strides = anchor_points([(1, 2), (1, 1)], (8, 16), "cpu")
        assert points.tolist() == [[4, 4], [12, 4], [8, 8]]
        assert strides.tolist() == [8, 8, 16]
        assert points.dtype == strides.dtype == torch.float32

    @pytest.mark.parity
    @pytest.mark.parametrize("size", [(64, 64), (96, 160), (640, 384)])
    def test_anchor_points__equal_to_ultralytics(self, size: tuple[int, int]) -> None:
        sizes = [(size[0] // stride, size[1] // stride) for stride in STRIDES]
        feats = [torch.zeros(1, 1, *cells, dtype=torch.float64) for cells in sizes]
        expected_points, expected_strides = make_anchors(feats, torch.tensor(STRIDES), 0.5)
        points, strides = anchor_points(sizes, STRIDES, "cpu", torch.float64)
        assert torch.equal(points, expected_points * expected_strides)
        assert torch.equal(strides, expected_strides[:, 0])


class TestDecodeBoxes:
    def test_decode_boxes__certain_distances_by_hand(self) -> None:
        """Distributions that are certain of 1, 2, 3 and 15 strides, at the only anchor of each map."""
        logits = torch.full((1, 4, 16, 3), -1e4)
        for side, distance in enumerate((1, 2, 3, 15)):
            logits[:, side, distance] = 0
        predictions = {"boxes": logits.flatten(1, 2), "feats": [torch.zeros(1, 1, 1, 1)] * 3}
        boxes = decode_boxes(predictions, STRIDES)
        # The anchor of stride s is at (s / 2, s / 2).
        expected = [[s / 2 - s, s / 2 - 2 * s, s / 2 + 3 * s, s / 2 + 15 * s] for s in STRIDES]
        torch.testing.assert_close(boxes, torch.tensor([expected]))

    @pytest.mark.parity
    def test_decode_boxes__equal_to_ultralytics_in_fp64(self) -> None:
        predictions = random_predictions(2, 64, 96, torch.float64)
        cells, strides = make_anchors(predictions["feats"], torch.tensor(STRIDES), 0.5)
        probability = predictions["boxes"].transpose(1, 2).unflatten(2, (4, 16)).softmax(3)
        distances = probability @ torch.arange(16.0, dtype=torch.float64)
        expected = dist2bbox(distances, cells, xywh=False) * strides
        boxes = decode_boxes(predictions, STRIDES)
        assert boxes.dtype == torch.float64
        torch.testing.assert_close(boxes, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_decode_boxes__16_bit_logits_are_decoded_in_fp32(self, dtype: torch.dtype) -> None:
        predictions = random_predictions(1, 128, 1280, dtype)
        widened = {"boxes": predictions["boxes"].float(), "feats": predictions["feats"]}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            boxes = decode_boxes(predictions, STRIDES)
        assert boxes.dtype == torch.float32
        assert torch.equal(boxes, decode_boxes(widened, STRIDES))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
    def test_decode_boxes__by_triton(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        predictions = random_predictions(2, 96, 64, dtype)
        predictions["boxes"] = predictions["boxes"].transpose(1, 2).contiguous().transpose(1, 2)
        predictions = {"boxes": predictions["boxes"].to(DEVICE), "feats": predictions["feats"]}
        expected = decode_boxes(predictions, STRIDES)
        monkeypatch.setattr(boxes_module, "fused_kernels_work", lambda logits: True)
        decoded = decode_boxes(predictions, STRIDES, fused_kernels=True)
        assert decoded.stride() == expected.stride() and decoded.dtype == torch.float32
        torch.testing.assert_close(decoded, expected, rtol=1e-6, atol=1e-4)  # pixels

    @pytest.mark.parametrize("num_bins", [2, 5, 8, 32])
    def test_decode_boxes__any_number_of_bins(self, num_bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also by Triton, whose tiles have powers of two as sides, and with infinite logits of the bins beyond."""
        num_anchors = 8 * 8 + 4 * 4 + 2 * 2
        logits = torch.randn(2, 4 * num_bins, num_anchors, generator=torch.Generator().manual_seed(1)).to(DEVICE) * 3
        predictions = {"boxes": logits, "feats": [torch.zeros(2, 1, side, side) for side in (8, 4, 2)]}
        cells, strides = make_anchors(predictions["feats"], torch.tensor(STRIDES), 0.5)
        distances = logits.cpu().transpose(1, 2).unflatten(2, (4, num_bins)).softmax(3) @ torch.arange(float(num_bins))
        expected = dist2bbox(distances, cells, xywh=False) * strides
        torch.testing.assert_close(decode_boxes(predictions, STRIDES).cpu(), expected, rtol=1e-5, atol=1e-4)
        monkeypatch.setattr(boxes_module, "fused_kernels_work", lambda logits: True)
        decoded = decode_boxes(predictions, STRIDES, fused_kernels=True).cpu()
        torch.testing.assert_close(decoded, expected, rtol=1e-5, atol=1e-4)

    def test_decode_boxes__chunks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        predictions = random_predictions(5, 64, 64)
        whole = decode_boxes(predictions, STRIDES)
        monkeypatch.setattr(boxes_module, "CHUNK_ELEMENTS", 2 * predictions["boxes"][0].numel())
        torch.testing.assert_close(decode_boxes(predictions, STRIDES), whole, rtol=1e-6, atol=1e-4)

    def test_decode_boxes__has_no_graph(self) -> None:
        predictions = random_predictions(1, 64, 64)
        predictions["boxes"].requires_grad_()
        assert not decode_boxes(predictions, STRIDES).requires_grad


class TestCompleteIou:
    def test_aligned_ciou__by_hand(self) -> None:
        """Two squares of side 2, one shifted to the right by 0, 1 and 4.

        By 1: IoU 2 / 6, centers 1 apart, hull 3 x 2, so offset 1 / 13. By 4: IoU 0, hull 6 x 2, offset 16 /
        40. Equal shapes, so no penalty for the aspect ratio.
        """
        boxes = torch.tensor([[0, 0, 2, 2]], dtype=torch.float64).expand(3, 4)
        others = boxes + torch.tensor([0, 1, 4])[:, None] * torch.tensor([1, 0, 1, 0])
        expected = torch.tensor([1, 1 / 3 - 1 / 13, -0.4], dtype=torch.float64)
        # The epsilons of the formula, 1e-7, show.
        torch.testing.assert_close(aligned_ciou(boxes, others), expected, rtol=0, atol=1e-6)

    def test_aligned_ciou__aspect_ratio_by_hand(self) -> None:
        """4 x 1 in the middle of 4 x 4: IoU 1 / 4, no offset, v = (2 / pi * (atan 4 - atan 1)) ** 2."""
        tall = torch.tensor([[0, 1.5, 4, 2.5]], dtype=torch.float64)
        square = torch.tensor([[0, 0, 4, 4]], dtype=torch.float64)
        shape = (2 / torch.pi * (torch.tensor(4.0).atan() - torch.tensor(1.0).atan())) ** 2
        expected = 0.25 - shape * shape / (1 - 0.25 + shape)
        assert aligned_ciou(tall, square).item() == pytest.approx(expected.item(), abs=1e-6)  # epsilons show

    @pytest.mark.parity
    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 10_000), size=st.sampled_from([1.0, 20.0, 1000.0]))
    def test_aligned_ciou__value_and_gradient_equal_to_ultralytics(self, seed: int, size: float) -> None:
        boxes, others = random_boxes(50, seed, size), random_boxes(50, seed + 1, size)
        others[:5] = boxes[:5]
        ours, theirs = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
        ciou = aligned_ciou(ours, others)
        expected = bbox_iou(theirs, others, xywh=False, CIoU=True)[:, 0]
        torch.testing.assert_close(ciou, expected, rtol=1e-10, atol=1e-12)
        ciou.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)

    def test_aligned_ciou__refuses_to_broadcast(self) -> None:
        with pytest.raises(ValueError, match=r"^aligned_ciou: shapes \(3, 4\) and \(1, 4\) must be equal;"):
            aligned_ciou(torch.zeros(3, 4), torch.zeros(1, 4))

    def test_aligned_ciou__memory_grows_with_the_boxes_not_with_their_square(self) -> None:
        def peak_bytes(count: int) -> int:
            boxes = torch.zeros(count, 4, device="meta", requires_grad=True)
            with StorageMeter([boxes]) as meter:
                aligned_ciou(boxes, torch.zeros(count, 4, device="meta")).sum().backward()
            return meter.peak_bytes

        assert peak_bytes(4000) < 4.1 * peak_bytes(1000)
        assert peak_bytes(4000) < 4000 * 4 * 60

    def test_pairwise_ciou__equal_to_aligned_and_without_graph(self) -> None:
        boxes, others = random_boxes(4, 1), random_boxes(4 * 7, 2).view(4, 7, 4)
        boxes.requires_grad_()
        ciou = pairwise_ciou(boxes, others)
        expected = aligned_ciou(boxes[:, None].expand(4, 7, 4).reshape(-1, 4), others.view(-1, 4)).view(4, 7)
        assert not ciou.requires_grad
        torch.testing.assert_close(ciou, expected.detach(), rtol=1e-12, atol=1e-12)
