"""Batches: putting together, cutting apart, moving."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loading.batch import Batch, Sample, collate, letterbox_geometry

COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=9)


def make_samples(box_counts: list[int], with_geometry: bool) -> list[Sample]:
    generator = torch.Generator().manual_seed(len(box_counts))
    return [
        Sample(
            image=torch.randint(0, 256, (3, 4, 4), generator=generator, dtype=torch.uint8),
            boxes_xyxy_px=torch.rand(count, 4, generator=generator),
            classes=torch.randint(0, 9, (count,), generator=generator),
            name=f"{i}.png",
            geometry=letterbox_geometry((10 + i, 20), (2, 4), (0, i)) if with_geometry else None,
        )
        for i, count in enumerate(box_counts)
    ]


def assert_equal(a: Batch, b: Batch) -> None:
    for name in ("images", "boxes_xyxy_px", "classes", "image_index"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype and torch.equal(left, right), name
    assert a.names == b.names
    assert (a.geometry is None) == (b.geometry is None)
    if a.geometry is not None:
        for left, right in zip(vars(a.geometry).values(), vars(b.geometry).values(), strict=True):
            assert torch.equal(left, right)


def test_collate__keeps_order_types_and_owners() -> None:
    samples = make_samples([2, 0, 1], with_geometry=True)
    batch = collate(samples)
    assert len(batch) == 3 and batch.names == ["0.png", "1.png", "2.png"]
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (3, 3, 4, 4)
    assert batch.boxes_xyxy_px.dtype == torch.float32 and batch.classes.dtype == torch.int64
    assert batch.image_index.tolist() == [0, 0, 2] and batch.image_index.dtype == torch.int64
    assert torch.equal(batch.boxes_xyxy_px[2:], samples[2].boxes_xyxy_px)
    assert batch.geometry.original_size_B2.tolist() == [[10, 20], [11, 20], [12, 20]]
    assert collate(make_samples([0, 0], with_geometry=False)).boxes_xyxy_px.shape == (0, 4)


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 10), st.booleans())
def test_split__equals_collating_each_part(counts: list[int], micro: int, with_geometry: bool) -> None:
    samples = make_samples(counts, with_geometry)
    parts = collate(samples).split(micro)
    assert [len(part) for part in parts] == [len(samples[i : i + micro]) for i in range(0, len(samples), micro)]
    for part, start in zip(parts, range(0, len(samples), micro), strict=True):
        assert_equal(part, collate(samples[start : start + micro]))


@settings(deadline=None, max_examples=20)
@given(COUNTS, st.integers(1, 10))
def test_split__then_concatenating_is_the_identity(counts: list[int], micro: int) -> None:
    batch = collate(make_samples(counts, with_geometry=False))
    parts = batch.split(micro)
    starts = range(0, len(batch), micro)
    joined = Batch(
        images=torch.cat([part.images for part in parts]),
        boxes_xyxy_px=torch.cat([part.boxes_xyxy_px for part in parts]),
        classes=torch.cat([part.classes for part in parts]),
        image_index=torch.cat([part.image_index + start for part, start in zip(parts, starts, strict=True)]),
        names=[name for part in parts for name in part.names],
    )
    assert_equal(joined, batch)


def test_split__copies_no_image() -> None:
    batch = collate(make_samples([1, 2, 3], with_geometry=False))
    for part in batch.split(2):
        assert part.images.untyped_storage().data_ptr() == batch.images.untyped_storage().data_ptr()
        assert part.boxes_xyxy_px.untyped_storage().data_ptr() == batch.boxes_xyxy_px.untyped_storage().data_ptr()


@pytest.mark.parametrize("with_geometry", [True, False])
def test_tensors__are_all_of_them(with_geometry: bool) -> None:
    batch = collate(make_samples([2, 1], with_geometry))
    expected = 2 * 3 * 4 * 4 + 3 * (4 * 4 + 8 + 8) + (2 * (8 + 8 + 16) if with_geometry else 0)
    assert sum(tensor.nbytes for tensor in batch.tensors) == expected


def test_to__moves_every_tensor() -> None:
    batch = collate(make_samples([2, 1], with_geometry=True))
    assert_equal(batch.to("cpu", non_blocking=True), batch)
    moved = batch.to("meta")
    tensors = [
        moved.images,
        moved.boxes_xyxy_px,
        moved.classes,
        moved.image_index,
        *vars(moved.geometry).values(),
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.names == batch.names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA driver")
def test_pin_memory__pins_every_tensor() -> None:
    batch = collate(make_samples([2, 1], with_geometry=True)).pin_memory()
    assert batch.images.is_pinned() and batch.classes.is_pinned() and batch.geometry.pad_B2.is_pinned()
