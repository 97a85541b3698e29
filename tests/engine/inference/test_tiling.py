from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inference.tiling import Tile, cover, merge
from models.detection.postprocess import Detections


@settings(deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    tile_px=st.integers(32, 1000),
    overlap=st.floats(0, 0.6),
)
def test_cover__every_pixel_with_enough_overlap(height: int, width: int, tile_px: int, overlap: float) -> None:
    tiles = cover(height, width, tile_px, overlap)
    for side, spans in (
        (width, sorted({(tile.left, tile.right) for tile in tiles})),
        (height, sorted({(tile.top, tile.bottom) for tile in tiles})),
    ):
        assert spans[0][0] == 0 and spans[-1][1] == side
        assert all(end - start == min(tile_px, side) for start, end in spans)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= overlap * tile_px - 1  # positions are whole pixels


def see(objects: torch.Tensor, classes: torch.Tensor, tile: Tile) -> Detections:
    """What a perfect network finds in a tile: each object's visible part, if that is at least a fifth of it."""
    frame = torch.tensor([tile.left, tile.top, tile.right, tile.bottom]).float()
    corners = torch.cat([objects[:, :2].clamp(min=frame[:2]), objects[:, 2:].clamp(max=frame[2:])], 1)
    sides = (corners[:, 2:] - corners[:, :2]).clamp(min=0)
    share = sides.prod(1) / (objects[:, 2:] - objects[:, :2]).prod(1)
    shown = share > 0.2
    return Detections(corners[shown] - frame[:2].repeat(2), 0.5 + 0.4 * share[shown], classes[shown])


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), largest_px=st.sampled_from([30, 60, 120]))
def test_merge__a_perfect_network_finds_each_object_once(seed: int, largest_px: int) -> None:
    """On a board of 700 x 900 px in tiles of 200 px that overlap by 40: objects up to three times as large as that."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cartesian_prod(torch.arange(0, 900 - 140, 140), torch.arange(0, 700 - 140, 140)).float()
    corner = cells + torch.rand(len(cells), 2, generator=generator) * 10
    size = 8 + torch.rand(len(cells), 2, generator=generator) * (largest_px - 8)
    objects, classes = torch.cat([corner, corner + size], 1), torch.arange(len(cells)) % 3
    tiles = cover(700, 900, 200, 0.2)
    merged = merge([see(objects, classes, tile) for tile in tiles], tiles, 700, 900, 0.7, 1000)
    assert len(merged.scores) == len(objects)
    order = torch.cdist(merged.boxes_xyxy_px, objects).argmin(dim=1)
    torch.testing.assert_close(merged.boxes_xyxy_px, objects[order], atol=1e-3, rtol=0)
    assert torch.equal(merged.classes, classes[order])
    assert merged.scores.diff().le(0).all()


TILES = [Tile(0, 0, 100, 100), Tile(60, 0, 160, 100)]


Boxes = list[list[float]]


def merge_two(left: Boxes, right: Boxes, classes: tuple[int, int] = (0, 0)) -> Boxes:
    found = [
        Detections(torch.tensor(boxes), torch.full((len(boxes),), 0.9), torch.full((len(boxes),), c))
        for boxes, c in zip((left, right), classes, strict=True)
    ]
    return sorted(merge(found, TILES, 100, 160, 0.7, 10).boxes_xyxy_px.tolist())


def test_merge__an_object_cut_in_one_tile_is_that_of_the_other() -> None:
    assert merge_two([[80.0, 10, 100, 40]], [[20.0, 10, 60, 40]]) == [[80, 10, 120, 40]]


def test_merge__an_object_cut_in_both_tiles_is_put_together() -> None:
    assert merge_two([[30.0, 10, 100, 40]], [[0.0, 11, 70, 41]]) == [[30, 10, 130, 41]]


def test_merge__neighbors_and_other_classes_stay() -> None:
    assert len(merge_two([[70.0, 10, 90, 40]], [[32.0, 10, 60, 40]])) == 2  # side by side
    assert len(merge_two([[80.0, 10, 100, 40]], [[20.0, 10, 60, 40]], (0, 1))) == 2
    assert len(merge_two([[62.0, 10, 96, 90]], [[10.0, 20, 20, 30]])) == 2  # whole, one on top of the other


def test_merge__the_picture_s_own_border_cuts_nothing() -> None:
    """Both touch the top of the picture and lie in each other; no tile continues there."""
    assert len(merge_two([[65.0, 0, 96, 90]], [[10.0, 0, 20, 30]])) == 2


@pytest.mark.parametrize("most", [1, 2])
def test_merge__keeps_the_best(most: int) -> None:
    found = [
        Detections(torch.tensor([[5.0, 5, 20, 20]]), torch.tensor([0.4]), torch.tensor([0])),
        Detections(torch.tensor([[70.0, 50, 90, 70]]), torch.tensor([0.8]), torch.tensor([1])),
    ]
    merged = merge(found, TILES, 100, 160, 0.7, most)
    torch.testing.assert_close(merged.scores, torch.tensor([0.8, 0.4][:most]))


def test_merge__nothing() -> None:
    nothing = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0).long())
    merged = merge([nothing, nothing], TILES, 100, 160, 0.7, 10)
    assert merged.boxes_xyxy_px.shape == (0, 4) and len(merged.scores) == len(merged.classes) == 0
