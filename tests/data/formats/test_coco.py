"""COCO files: images are found, classes match by name, boxes are in pixels, and each mistake gives one sentence."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.indexing.index
from data.errors import DataError
from data.formats.coco import CocoFile
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import ImageIndex, build_index

CATEGORIES = [{"id": 90, "name": "b"}, {"id": 7, "name": "a"}]  # gaps, and in no order
IMAGES = [
    {"id": 5, "file_name": "x.png", "width": 80, "height": 40},
    {"id": "six", "file_name": "sub/y.png"},
    {"id": 9, "file_name": "z.png", "width": 160, "height": 80},
]
ANNOTATIONS = [
    {"id": 1, "image_id": "six", "category_id": 90, "bbox": [8, 4, 16, 8], "segmentation": [[0, 0, 1, 1, 1, 0]]},
    {"id": 2, "image_id": 5, "category_id": 7, "bbox": [0, 0, 40.0, 40], "iscrowd": 0},
    {"id": 3, "image_id": 5, "category_id": 90, "bbox": [0, 0, 80, 40], "iscrowd": 1},
    {"id": 4, "image_id": 9, "category_id": 7, "bbox": [80, 40, 80, 40]},
]


def content(**changes: object) -> dict:
    return {"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES, **changes}


def write(root: Path, json_name: str = "train.json", folder: str = ".", **changes: object) -> Path:
    """Three images of 80 x 40 pixels in ``folder``, annotated in ``json_name``; returns the data.yaml."""
    for image in IMAGES:
        file = root / folder / image["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.zeros((40, 80, 3), np.uint8))
    (root / json_name).parent.mkdir(parents=True, exist_ok=True)
    (root / json_name).write_text(json.dumps(content(**changes)))
    (root / "data.yaml").write_text(f"train: {json_name}\nval: {json_name}\n")
    return root / "data.yaml"


def index_of(file: Path, cache: Path | None = None) -> ImageIndex:
    return build_index(read_dataset_yaml(file), "train", cache)


def test_build_index__coco(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path)
    assert read_dataset_yaml(file).names == ("a", "b")  # in the order of the category ids
    index = index_of(file)
    assert [index.path(i) for i in range(3)] == [str(tmp_path / name) for name in ("x.png", "sub/y.png", "z.png")]
    assert index.labels(0)[0].tolist() == [[0, 0, 0.5, 1]] and index.labels(0)[1].tolist() == [0]
    np.testing.assert_allclose(index.labels(1)[0], [[0.1, 0.1, 0.3, 0.3]], atol=1e-7)
    assert index.labels(1)[1].tolist() == [1]
    assert index.labels(2)[0].tolist() == [[0.5, 0.5, 1, 1]]  # the image is half as large as when it was annotated
    assert [record.getMessage() for record in caplog.records] == ["train: 1 crowd regions dropped"]


def test_build_index__coco_size_with_decimals(tmp_path: Path) -> None:
    """Some tools write the annotated size as 160.0; a size beyond reason counts as missing."""
    images = [{**IMAGES[2], "width": 160.0, "height": 80.0}, {**IMAGES[0], "width": 10**400, "height": 10**400}]
    index = index_of(write(tmp_path, images=images, annotations=ANNOTATIONS[1:2] + ANNOTATIONS[3:]))
    assert index.labels(0)[0].tolist() == [[0.5, 0.5, 1, 1]] and index.labels(1)[0].tolist() == [[0, 0, 0.5, 1]]


def test_build_index__coco_names_of_data_yaml_set_the_class_ids(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text(file.read_text() + "names: [c, b, a]\n")
    index = index_of(file)
    assert [index.labels(i)[1].tolist() for i in range(3)] == [[2], [1], [2]]


@pytest.mark.parametrize(
    ("json_name", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),  # COCO
        ("annotations/instances_train2017.json", "images/train2017"),
        ("train/_annotations.coco.json", "train"),  # Roboflow
        ("result.json", "images"),  # Label Studio, CVAT
    ],
)
def test_build_index__coco_images_are_found(tmp_path: Path, json_name: str, images: str) -> None:
    index = index_of(write(tmp_path, json_name, images))
    assert index.path(0) == str(tmp_path / images / "x.png")


def test_build_index__coco_file_is_parsed_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset_yaml(write(tmp_path))
    parsed = []
    monkeypatch.setattr(data.indexing.index, "CocoFile", lambda *args: parsed.append(args) or CocoFile(*args))
    cache = tmp_path / "cache"
    boxes = lambda: [build_index(dataset, "train", cache).labels(i)[0].tolist() for i in range(3)]  # noqa: E731
    first = boxes()
    assert len(parsed) == 1
    assert boxes() == first and len(parsed) == 1
    os.utime(tmp_path / "z.png", ns=(1, 1))  # an image changed: its labels are needed again
    assert boxes() == first and len(parsed) == 2
    (tmp_path / "train.json").write_text(json.dumps(content(annotations=ANNOTATIONS[:2])))
    assert boxes() == [first[0], first[1], []] and len(parsed) == 3


def test_build_index__coco_images_that_have_moved_are_found(tmp_path: Path) -> None:
    """The index of an earlier start has the old paths."""
    file, cache = write(tmp_path, "annotations/train.json", "train"), tmp_path / "cache"
    first = index_of(file, cache)
    (tmp_path / "images").mkdir()
    (tmp_path / "train").rename(tmp_path / "images" / "train")
    index = index_of(file, cache)
    assert [index.path(i) for i in range(3)] == [first.path(i).replace("train/", "images/train/") for i in range(3)]
    assert [index.labels(i)[0].tolist() for i in range(3)] == [first.labels(i)[0].tolist() for i in range(3)]


def test_build_index__coco_images_of_another_root(tmp_path: Path) -> None:
    """Two copies of the images share the file; ``path`` selects one."""
    write(tmp_path / "old", "../train.json")
    write(tmp_path / "new", "../train.json")
    for root in ("old", "new"):
        (tmp_path / "data.yaml").write_text(f"path: {root}\ntrain: {tmp_path / 'train.json'}\n")
        assert index_of(tmp_path / "data.yaml", tmp_path / "cache").path(0) == str(tmp_path / root / "x.png")


AS_TEXT = {
    "categories": [{"id": "90", "name": "b"}, {"id": "7", "name": "a"}],
    "annotations": [
        {"id": "1", "image_id": "six", "category_id": 90.0, "bbox": ["8", "4", "16.0", "8"], "iscrowd": "0"},
        {"id": "2", "image_id": "5", "category_id": "7", "bbox": [0, 0, "40", 40], "iscrowd": False},
        {"id": "3", "image_id": 5.0, "category_id": "90", "bbox": [0, 0, 80, 40], "iscrowd": "1"},
        {"id": "4", "image_id": "9", "category_id": 7, "bbox": ["80", "40", "80", "40"], "iscrowd": ""},
    ],
    "images": [{**IMAGES[0], "width": "80", "height": "40"}, IMAGES[1], {**IMAGES[2], "width": "160", "height": "80"}],
}


def test_build_index__coco_values_as_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If any text meant crowd, ``'0'`` would drop each object."""
    expected = index_of(write(tmp_path / "numbers"))
    index = index_of(write(tmp_path / "text", **AS_TEXT))
    for i in range(3):
        assert index.labels(i)[0].tolist() == expected.labels(i)[0].tolist()
        assert index.labels(i)[1].tolist() == expected.labels(i)[1].tolist()
    assert [record.getMessage() for record in caplog.records] == ["train: 1 crowd regions dropped"] * 2
    assert read_dataset_yaml(tmp_path / "text" / "data.yaml").names == ("a", "b")


def test_build_index__coco_category_ids_as_text_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    categories = [{"id": str(number), "name": f"n{number}"} for number in (10, 9, 1)]
    assert read_dataset_yaml(write(tmp_path, categories=categories)).names == ("n1", "n9", "n10")


@pytest.mark.parametrize("segmentation", [[[8, 12, "24", 4, 9, 4]], [8, 12, 24, 4, 9, 4], [[8, 4], [24, 12], [9, 9]]])
@pytest.mark.parametrize("box", [{}, {"bbox": None}, {"bbox": []}])
def test_build_index__coco_polygon_without_a_box(tmp_path: Path, segmentation: list, box: dict, caplog) -> None:
    annotation = {"id": 1, "image_id": 5, "category_id": 90, "segmentation": segmentation, **box}
    index = index_of(write(tmp_path, annotations=[annotation]))
    np.testing.assert_allclose(index.labels(0)[0], [[0.1, 0.1, 0.3, 0.3]], atol=1e-7)
    assert "1 polygons and rotated boxes reduced to boxes" in caplog.text


@pytest.mark.parametrize(
    "prefix", ["sub\\", "C:\\work\\set\\", "/content/set/", "../../label-studio/upload/", "https://example.org/bucket/"]
)
def test_build_index__coco_names_of_another_machine(tmp_path: Path, prefix: str, caplog) -> None:
    names = ["x a.png", "sub/y.png"] if prefix != "sub\\" else ["x a.png", "y.png"]
    for name in ("x a.png", "sub/x a.png", "sub/y.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / name), np.zeros((40, 80, 3), np.uint8))
    written = [prefix + (name.replace(" ", "%20") if "://" in prefix else name) for name in names]
    images = [{"id": i, "file_name": name} for i, name in enumerate(["gone", *written])]
    images[0]["file_name"] = f"{prefix}gone.png"
    file = write(tmp_path, folder="elsewhere", images=images, annotations=[])
    index = index_of(file)
    folder = tmp_path / "images" / ("sub" if prefix == "sub\\" else "")
    assert [index.path(i) for i in range(2)] == [str(folder / name) for name in names]
    assert f"train.json: image {written[0]!r} is found as {folder / names[0]}, others likewise" in caplog.text
    assert "train: 1 images left out: " in caplog.text


@pytest.mark.parametrize("name", ["a/x.png", "a%20b/x.png", "http://[n/y.png", "/", ""])
def test_build_index__coco_relative_names_are_never_cut(tmp_path: Path, name: str) -> None:
    """``a/x.png`` is not ``x.png``."""
    with pytest.raises(DataError, match=rf"no image '{re.escape(name)}' in any of"):
        index_of(write(tmp_path, images=[{"id": 5, "file_name": name}], annotations=[]))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_build_index__coco_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    file = write(tmp_path, images=[{"id": 5, "file_name": name}], annotations=[])
    (tmp_path / "x.png").rename(tmp_path / name)
    assert Path(index_of(file).path(0)).is_file()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_build_index__coco_text_of_windows(tmp_path: Path, encoding: str) -> None:
    file = write(tmp_path)
    (tmp_path / "train.json").write_bytes(json.dumps(content()).encode(encoding))
    assert len(index_of(file)) == 3


@pytest.mark.parametrize("name", ["gone.png", "x" * 300, "\0.png"])
def test_build_index__coco_image_that_is_missing_is_left_out(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, images=[{"id": 1, "file_name": name}, *IMAGES])
    assert len(index_of(file)) == 3
    assert "train: 1 images left out: " in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "contains no image"),
        ({"images": "x"}, "images is not a list of objects"),
        ({"images": [{"id": 1}]}, "images: id 1 is missing or repeated, or has no file_name"),
        ({"images": [IMAGES[0], IMAGES[0]]}, "images: id 5 is missing or repeated"),
        ({"images": [{**IMAGES[0], "id": i} for i in (5, "six", 9)]}, r"image 'x\.png' is listed twice"),
        ({"images": [{"id": 5, "file_name": "n.png"}]}, r"no image 'n\.png' in any of .*\. Put the images into one"),
        ({"annotations": [{"id": 4, "image_id": 77}]}, "annotation 4: there is no image 77"),
        ({"annotations": [{"id": 4, "image_id": [5]}]}, r"annotation 4: there is no image \[5\]"),
        ({"annotations": [{"id": 4, "image_id": 5, "category_id": 1}]}, "annotation 4: there is no category 1"),
        ({"annotations": [{**ANNOTATIONS[1], "bbox": [1, 2, 3]}]}, r"annotation 2: bbox: \[1, 2, 3\]: not x, y"),
        ({"annotations": [{**ANNOTATIONS[1], "bbox": [1, 2, -3, 4]}]}, r"bbox: \[1, 2, -3, 4\]: not x, y"),
        ({"annotations": [{**ANNOTATIONS[1], "bbox": [1, float("nan"), 3, 4]}]}, r"bbox: \[1, nan, 3, 4\]"),
        ({"annotations": [{**ANNOTATIONS[1], "bbox": [1, 10**400, 3, 4]}]}, r"bbox: \[1, 1000"),
        ({"annotations": [{**ANNOTATIONS[1], "bbox": None}]}, "bbox: None"),
        ({"annotations": [{**ANNOTATIONS[1], "bbox": [70, 0, 20, 9]}]}, r"x\.png: box \(70, 0, 90, 9\) lies outside"),
        ({"images": [{**IMAGES[0], "width": 40, "height": 80}], "annotations": []}, r"x\.png: annotated at 40 x 80"),
        ({"categories": [{"id": 1}]}, "categories: id 1 is missing or repeated, or has no name"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": "b", "name": "b"}]}, "the category ids are not all numbers"),
        ({"images": [{"id": 5, "file_name": "\ud83d.png"}, *IMAGES[1:]]}, "file_name: '.ud83d.png': half a"),
        ({"categories": [{"id": 7, "name": "\udc80"}, CATEGORIES[0]]}, "name: '.udc80': half a character"),
        ({"images": [{"id": True, "file_name": "x.png"}]}, "images: id True is missing or repeated"),
        ({"images": [{**IMAGES[0], "id": 5}, {**IMAGES[1], "id": "5"}]}, "images: id '5' is missing or repeated"),
        ({"annotations": [{**ANNOTATIONS[1], "iscrowd": "maybe"}]}, "2: iscrowd: 'maybe': not 0 or 1"),
        ({"annotations": [{**ANNOTATIONS[1], "bbox": ["1", "x", 3, 4]}]}, "bbox: .'1', 'x', 3, 4.: not x, y"),
        ({"annotations": [{**ANNOTATIONS[1], "bbox": "[1, 2, 3, 4]"}]}, r"bbox: \[1, 2, 3, 4\]: not x, y"),
        ({"annotations": [{**ANNOTATIONS[1], "bbox": None, "segmentation": {"counts": []}}]}, "bbox: None: not x, y"),
        ({"categories": []}, r"categories: \[\]: no category\. Give 'names'"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 3, "name": "a"}]}, "categories: 'a': occurs 2 times. Give 'na"),
    ],
)
def test_build_index__coco_rejects(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=rf"train\.json: .*{message}") as caught:
        index_of(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_build_index__coco_rejects_an_unknown_category(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text(file.read_text() + "names: [a, c]\n")
    with pytest.raises(DataError, match=r"category 'b' is not among the class names\. Add it to 'names'"):
        index_of(file)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"images": 3}', "[" * 100_000, "\udc80"])
def test_read_dataset_yaml__rejects_json_of_another_kind(tmp_path: Path, text: str) -> None:
    file = write(tmp_path)
    (tmp_path / "train.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"train\.json: (not valid JSON|not a COCO file)"):
        read_dataset_yaml(file)


KEYS = st.sampled_from(["id", "image_id", "category_id", "bbox", "file_name", "name", "width", "height", "iscrowd"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x.png", "a", 5, "six", 90]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["images", "annotations", "categories"]), value=VALUES, position=st.integers(0, 2), name=KEYS
)
def test_coco_file__anything_is_parsed_or_a_data_error(
    tmp_path: Path, key: str, value: object, position: int, name: str
) -> None:
    changed = json.loads(json.dumps(content()))
    if position < len(changed[key]):
        changed[key][position][name] = value
    else:
        changed[key] = value
    file = tmp_path / "train.json"
    file.write_text(json.dumps(changed))
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((40, 80, 3), np.uint8))
    try:
        coco = CocoFile(file, tmp_path, ("a", "b"))
    except DataError as error:
        assert "\n" not in str(error)
        return
    for path in coco.paths:
        assert all(0 <= row[0] < 2 and np.isfinite(row[1:]).all() for row in coco.objects(path).rows)
