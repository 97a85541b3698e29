"""Pascal VOC annotations: names become ids, pixels become fractions, and entities are never expanded."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.formats.dataset_yaml import read_dataset_yaml
from data.formats.voc import read_voc
from data.indexing.index import ImageIndex, build_index

NAMES = {"a": 0, "light emitting diode": 1}
SIZE = "<size><width>80</width><height>40</height><depth>3</depth></size>"


def box(name: str, x1: object, y1: object, x2: object, y2: object) -> str:
    corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"


def write(root: Path, text: str, images: str = "JPEGImages", annotations: str = "Annotations") -> Path:
    for folder in (images, annotations):
        (root / folder).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / images / "x.jpg"), np.zeros((40, 80, 3), np.uint8))
    (root / annotations / "x.xml").write_text(f"<annotation>{text}</annotation>", encoding="utf-8")
    (root / "data.yaml").write_text(f"train: {images}\nval: {images}\nnames: [a, light emitting diode]\n")
    return root / "data.yaml"


def index_of(file: Path) -> ImageIndex:
    return build_index(read_dataset_yaml(file), "train")


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("JPEGImages", "Annotations"), ("images", "annotations"), ("train/images", "train/Annotations"), ("x", "x")],
)
def test_build_index__voc_folders(tmp_path: Path, images: str, annotations: str) -> None:
    text = SIZE + box("light emitting diode", 8, 4, 24.0, 12) + box(" a ", 0, 0, 80, 40)
    index = index_of(write(tmp_path, text, images, annotations))
    np.testing.assert_allclose(index.labels(0)[0], [[0.1, 0.1, 0.3, 0.3], [0, 0, 1, 1]], atol=1e-7)
    assert index.labels(0)[1].tolist() == [1, 0]


def test_build_index__voc_list_of_names_without_suffix(tmp_path: Path) -> None:
    file = write(tmp_path, box("a", 0, 0, 40, 40))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("x\n")
    file.write_text("train: ImageSets/Main/train.txt\nval: JPEGImages\nnames: [a, b]\n")
    index = index_of(file)
    assert index.path(0) == str(tmp_path / "JPEGImages" / "x.jpg") and index.labels(0)[0].tolist() == [[0, 0, 0.5, 1]]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_build_index__voc_without_a_size_takes_that_of_the_image(tmp_path: Path, size: str) -> None:
    assert index_of(write(tmp_path, size + box("a", 0, 0, 40, 40))).labels(0)[0].tolist() == [[0, 0, 0.5, 1]]


def test_build_index__voc_rotated_box(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shape = "<robndbox><cx>40</cx><cy>20</cy><w>20</w><h>10</h><angle>1.5707963</angle></robndbox>"
    index = index_of(write(tmp_path, f"{SIZE}<object><name>a</name>{shape}</object>"))
    np.testing.assert_allclose(index.labels(0)[0] * (80, 40, 80, 40), [[35, 10, 45, 30]], atol=1e-4)
    assert "1 polygons and rotated boxes reduced to boxes" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (box("diode", 0, 0, 9, 9), "object 1: class 'diode' is not among the names of data.yaml"),
        (box("a", 0, 0, 9, 9) + "<object><name>a</name></object>", "object 2: no bndbox, robndbox or polygon. Add"),
        ("<object><name>a</name><bndbox/></object>", "object 1: bndbox/xmin: '': not a finite number"),
        ("<object><name>a</name><polygon><x1>1</x1><y1>2</y1></polygon></object>", "polygon has 1 x and 1 y, not 3"),
        (box("a", "nan", 0, 9, 9), "object 1: bndbox/xmin: 'nan': not a finite number"),
        (box("a", 9, 0, 3, 9), "object 1: size -6 x 9 is negative"),
        (SIZE + box("a", 0, 0, 99, 9), r"box \(0, 0, 99, 9\) lies outside the image of 80 x 40 pixels"),
        ("<size><width>40</width><height>80</height></size>", "annotated at 40 x 80 pixels, but the image has 80 x 40"),
        ("<size><width>x</width><height>80</height></size>", "size/width: 'x'"),
        ("<object>", "not valid XML"),
    ],
)
def test_build_index__voc_rejects(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"x\.xml: .*{message}") as caught:
        index_of(write(tmp_path, text))
    assert "\n" not in str(caught.value)


POINTS = ((40, 10), (45, 30), (35, 20))
FLAT = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(POINTS, start=1))
NESTED = "<username>me</username>" + "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in POINTS)


@pytest.mark.parametrize("points", [FLAT, NESTED])
def test_build_index__voc_polygon(tmp_path: Path, points: str, caplog: pytest.LogCaptureFixture) -> None:
    index = index_of(write(tmp_path, f"{SIZE}<object><name>a</name><polygon>{points}</polygon></object>"))
    np.testing.assert_allclose(index.labels(0)[0] * (80, 40, 80, 40), [[35, 10, 45, 30]], atol=1e-4)
    assert "1 polygons and rotated boxes reduced to boxes" in caplog.text


def test_build_index__voc_parts_are_no_objects_and_difficult_ones_are(tmp_path: Path) -> None:
    part = "<part><name>light emitting diode</name><bndbox><xmin>1</xmin></bndbox></part>"
    for difficult in ("", "1", "Unspecified"):
        text = box("a", 0, 0, 40, 40).replace("<difficult>0", f"<difficult>{difficult}")
        index = index_of(write(tmp_path, text.replace("</object>", f"{part}</object>")))
        assert index.labels(0)[0].tolist() == [[0, 0, 0.5, 1]] and index.labels(0)[1].tolist() == [0]


@pytest.mark.parametrize("size", ["<size/>", "<size><width/><height/></size>", "<size><width>80</width></size>"])
def test_build_index__voc_empty_size_is_none(tmp_path: Path, size: str) -> None:
    assert index_of(write(tmp_path, size + box("a", 0, 0, 40, 40))).labels(0)[0].tolist() == [[0, 0, 0.5, 1]]


def test_build_index__voc_tags_in_any_case_and_namespace(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    text = (SIZE + box(" a ", " 0 ", "0.0", "\n40", 40)).replace("object>", "Object>").replace("xmin", "XMin")
    (tmp_path / "Annotations/x.xml").write_text(f'<Annotation xmlns="urn:x"><!-- c -->{text}</Annotation>')
    assert index_of(file).labels(0)[0].tolist() == [[0, 0, 0.5, 1]]


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("gb2312", "gb2312"),
        ("GBK", "gbk"),
        ("Shift_JIS", "shift_jis"),
        ("utf-8", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16", "utf-8"),  # as .NET writes it
        ("utf-8", "utf-16"),
        (None, "utf-8"),
        (None, "utf-16"),
    ],
)
def test_read_voc__encodings(tmp_path: Path, declared: str | None, encoding: str) -> None:
    start = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    (tmp_path / "x.xml").write_bytes(f"{start}<annotation>{box('日本', 1, 2, 3, 4)}</annotation>".encode(encoding))
    assert read_voc(tmp_path / "x.xml", {"日本": 0}).rows == [(0, 1, 2, 3, 4)]


def test_read_voc__empty_lines_before_the_declaration(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(f'\n <?xml version="1.0"?><annotation>{box("a", 1, 2, 3, 4)}</annotation>')
    assert read_voc(tmp_path / "x.xml", NAMES).rows == [(0, 1, 2, 3, 4)]


@pytest.mark.parametrize("encoding", ["klingon", "base64", "ascii"])
def test_read_voc__rejects_wrong_encodings(tmp_path: Path, encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{box("日本", 1, 2, 3, 4)}</annotation>'
    (tmp_path / "x.xml").write_bytes(text.encode())
    with pytest.raises(DataError, match=r"x\.xml: not valid XML"):
        read_voc(tmp_path / "x.xml", {"日本": 0})


def test_build_index__voc_rejects_two_classes_of_one_name(tmp_path: Path) -> None:
    file = write(tmp_path, box("a", 0, 0, 40, 40))
    file.write_text("train: JPEGImages\nnames: [a, a]\n")
    with pytest.raises(DataError, match=r"names: 'a': occurs 2 times\. Give each class a name of its own"):
        index_of(file)


@pytest.mark.parametrize("text", ["<doc/>", "<kml xmlns='urn:x'><object/></kml>"])
def test_read_voc__rejects_other_xml_files(tmp_path: Path, text: str) -> None:
    """Otherwise the image would count as one without objects."""
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(DataError, match=r"x\.xml: begins with <.+>, not <annotation>\. Give a Pascal VOC file"):
        read_voc(tmp_path / "x.xml", NAMES)


BOMB = (
    '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(97 + i)} "{f"&{chr(96 + i)};" * 10}">' for i in range(1, 12))
    + "]><annotation><object><name>&l;</name></object></annotation>"
)
OUTSIDE = (
    '<!DOCTYPE a [<!ENTITY s SYSTEM "file:///etc/passwd">]><annotation><object><name>&s;</name></object></annotation>'
)


HARMLESS = '<!DOCTYPE a [<!ENTITY s "a">]><annotation><object><name>&s;</name></object></annotation>'


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, HARMLESS], ids=["bomb", "other file", "harmless"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_read_voc__entities_are_refused_unread(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "x.xml").write_text(text, encoding=encoding)
    with pytest.raises(DataError, match=r"x\.xml: it declares a document type, which is not safe"):
        read_voc(tmp_path / "x.xml", NAMES)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | st.lists(
        st.sampled_from(
            [*"<>/& ", "object", "name", "bndbox", "xmin", "a", "1e999", "\n", "<object>", "</object>", "<!"]
        ),
        max_size=20,
    ).map(lambda parts: f"<annotation>{''.join(parts)}</annotation>".encode())
)
def test_read_voc__anything_is_parsed_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.xml").write_bytes(content)
    try:
        objects = read_voc(tmp_path / "x.xml", NAMES)
    except DataError as error:
        assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)
        return
    assert all(np.isfinite(row[1:]).all() for row in objects.rows)
