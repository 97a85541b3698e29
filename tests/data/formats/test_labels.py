"""The label parser: what it accepts, repairs and refuses; and no text makes it crash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.formats.labels import Labels, read_labels


def parse(folder: Path, text: str | bytes, num_classes: int = 3, num_keypoint_values: int = 0) -> Labels:
    file = folder / "x.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(file, num_classes, num_keypoint_values)


def test_read_labels__boxes_become_corners(tmp_path: Path) -> None:
    labels = parse(tmp_path, "2 0.5 0.5 0.2 0.4\n\n 0.0\t0.25 0.5 0.5 1.0 \r\n")
    np.testing.assert_allclose(labels.boxes_xyxy_rel, [[0.4, 0.3, 0.6, 0.7], [0, 0, 0.5, 1]], atol=1e-7)
    assert labels.classes.tolist() == [2, 0]
    assert labels.boxes_xyxy_rel.dtype == np.float32 and labels.classes.dtype == np.int32
    assert not labels.notices


@pytest.mark.parametrize("text", ["", "\n \n", b"\xef\xbb\xbf"])
def test_read_labels__empty_file_has_no_objects(tmp_path: Path, text: str | bytes) -> None:
    labels = parse(tmp_path, text)
    assert labels.boxes_xyxy_rel.shape == (0, 4) and labels.classes.shape == (0,)


def test_read_labels__byte_order_mark(tmp_path: Path) -> None:
    assert parse(tmp_path, b"\xef\xbb\xbf1 0.5 0.5 0.1 0.1").classes.tolist() == [1]


def test_read_labels__polygon_becomes_its_box(tmp_path: Path) -> None:
    labels = parse(tmp_path, "1 0.1 0.9 0.5 0.2 0.7 0.6\n0 0.2 0.2 0.4 0.2 0.4 0.3 0.2 0.3\n")
    np.testing.assert_allclose(labels.boxes_xyxy_rel, [[0.1, 0.2, 0.7, 0.9], [0.2, 0.2, 0.4, 0.3]], atol=1e-7)


BOX = [[0.4, 0.45, 0.6, 0.55]]  # what "0.5 0.5 0.2 0.1" means


@pytest.mark.parametrize(
    ("points", "num_values"),
    [
        ("0.42 0.42 1 0.58 0.42 1 0.58 0.58 1 0.42 0.58 1", 12),  # an odd number of columns, as of a polygon
        ("0.42 0.42 2 0.58 0.42 1 0 0 0", 9),
        ("0.42 0.42 0.58 0.42 0.58 0.58", 6),
        ("0.1 0.2", 2),
        ("-0.5 1.7 0.31", 3),  # a key point may lie outside, and its third number may be a score
    ],
)
def test_read_labels__key_points_are_left_out(tmp_path: Path, points: str, num_values: int) -> None:
    labels = parse(tmp_path, f"0 0.5 0.5 0.2 0.1 {points}\n1 0.5 0.5 0.2 0.2\n", num_keypoint_values=num_values)
    np.testing.assert_allclose(labels.boxes_xyxy_rel[:1], BOX, atol=1e-7)
    assert labels.notices == {"boxes whose key points are left out": 1} and len(labels.classes) == 2


@pytest.mark.parametrize("num_points", [2, 4, 17])
def test_read_labels__key_points_are_known_by_their_visibilities(tmp_path: Path, num_points: int) -> None:
    """Without ``kpt_shape`` in data.yaml."""
    points = " ".join(f"0.4{i % 10} 0.5 {i % 3}" for i in range(num_points))
    labels = parse(tmp_path, f"0 0.5 0.5 0.2 0.1 {points}\n")
    np.testing.assert_allclose(labels.boxes_xyxy_rel, BOX, atol=1e-7)
    assert labels.notices == {"boxes whose key points are left out": 1}


@pytest.mark.parametrize("row", ["0 0 1 0 1 1 0 1 0 0", "1 0 1 1 0 1 0 0 1 0", "0 1 0 0 1 0 1 1 0 1"])
def test_read_labels__polygon_along_the_edges_has_no_visibilities(tmp_path: Path, row: str) -> None:
    assert parse(tmp_path, f"0 {row}\n").boxes_xyxy_rel.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_read_labels__text_of_windows(tmp_path: Path, encoding: str) -> None:
    assert parse(tmp_path, "1 0.5 0.5 0.1 0.1\r\n".encode(encoding)).classes.tolist() == [1]


def test_read_labels__clips_what_reaches_outside(tmp_path: Path) -> None:
    labels = parse(tmp_path, "0 0.05 0.5 0.2 0.2\n0 0.5 1.0 0.2 0.005\n0 0.5 0.5 1.0000004 0.1\n")
    np.testing.assert_allclose(labels.boxes_xyxy_rel[0], [0, 0.4, 0.15, 0.6], atol=1e-7)
    assert labels.boxes_xyxy_rel.min() >= 0 and labels.boxes_xyxy_rel.max() <= 1
    assert labels.notices == {"boxes clipped to the image": 2}  # the third one is only rounding


def test_read_labels__drops_empty_boxes_and_repetitions(tmp_path: Path) -> None:
    text = "0 0.5 0.5 0 0.2\n0 1.005 0.5 0.002 0.2\n0 0.5 0.5 1e-9 0.1\n"
    text += "1 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 .1\n2 0.5 0.5 0.1 0.1\n"
    labels = parse(tmp_path, text)
    assert labels.classes.tolist() == [1, 2]
    assert labels.notices["boxes without area dropped"] == 3  # the third has none in float32
    assert labels.notices["repeated objects dropped"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "3 0.5 0.5 0.1 0.1",
            r"class 3, but data\.yaml names 3 classes \(ids 0 to 2\)\. Correct the line or add",
        ),
        ("-1 0.5 0.5 0.1 0.1", r"class -1, but .*\. Correct the line\.$"),
        ("0.5 0.5 0.5 0.1 0.1", r"class 0\.5, but .*\. Correct the line\.$"),
        ("0 0.5 0.5 0.1", r"4 columns, expected 5 \(class cx cy width height\) or a polygon"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"6 columns, expected 5 .*\. Remove the confidence or angle at the end"),
        ("0,0.5,0.5,0.1,0.1", "'0,0.5,0.5,0.1,0.1': not 5 numbers with spaces between. Replace the commas"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 columns, expected 5"),
        ("0 nan 0.5 0.1 0.1", "'nan' is not a finite number"),
        ("0 0.5 0.5 0.1 1e999", "'1e999' is not a finite number"),
        ("nan 0.5 0.5 0.1 0.1", "'nan' is not a finite number"),
        ("0 0,5 0.5 0.1 0.1", "'0,5' is not a finite number"),
        ("0 320 240 64 64", "coordinate 320 is not between 0 and 1. Give fractions"),
        ("0 -0.2 0.5 0.1 0.1", "coordinate -0.2 is not between 0 and 1"),
        ("0 0.5 0.5 1.2 0.1", "coordinate 1.2 is not between 0 and 1"),
        ("0 0.5 0.5 -0.005 0.1", "size -0.005 x 0.1 is negative"),
        ("0 0.1 0.1 0.2 0.2 0.3 1.5", "coordinate 1.5 is not between 0 and 1"),
    ],
)
def test_read_labels__rejects(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"x\.txt:3: {message}") as caught:
        parse(tmp_path, f"0 0.5 0.5 0.1 0.1\n\n{line}\n0 0.5 0.5 0.1 0.1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", ["0 .5 .5 .1 .1 .2 .2", "0 .5 .5 .1", "0 .1 .1 .2 .2 .3 .3 .4 .4"])
def test_read_labels__rejects_other_numbers_of_key_points(tmp_path: Path, row: str) -> None:
    message = r"x\.txt:1: \d columns, expected 5 .* or, by kpt_shape in data\.yaml, 11\. Correct"
    with pytest.raises(DataError, match=message):
        parse(tmp_path, row, num_keypoint_values=6)


def test_read_labels__rejects_what_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.txt: not text"):
        parse(tmp_path, b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path, 3)


NUMBERS = st.one_of(
    st.floats(-0.1, 1.1).map(str),
    st.integers(-2, 9).map(str),
    st.sampled_from(["nan", "inf", "x", "1e5", "٣", "1_0"]),
)
LINES = st.lists(NUMBERS, max_size=9).map(" ".join)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.lists(LINES, max_size=4).map("\n".join).map(str.encode), st.binary(max_size=40)))
def test_read_labels__any_file_gives_valid_boxes_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    try:
        labels = parse(tmp_path, content)
    except DataError as error:
        assert str(error).startswith(str(tmp_path))
        return
    corners = labels.boxes_xyxy_rel
    assert ((corners >= 0) & (corners <= 1)).all() and (corners[:, 2:] >= corners[:, :2]).all()
    assert ((labels.classes >= 0) & (labels.classes < 3)).all()
