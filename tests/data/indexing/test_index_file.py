"""The index file: whole or made again, small, shared, and up to date with its files."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.indexing.index
from data.errors import DataError
from data.formats.dataset_yaml import DatasetYaml, read_dataset_yaml
from data.formats.labels import NOTICE_KINDS
from data.indexing.index import ImageIndex, build_index, scan_split
from data.indexing.index_file import IndexFileError, load_table, save_table
from data.indexing.scan_table import ARRAYS, Reject, ScanTable, Source, concatenate, offsets_of

KEY = "some names"


def random_table(num_images: int, boxes_per_image: int, seed: int = 0) -> ScanTable:
    """Rows as `scan_split` makes them, without any file."""
    rng = np.random.default_rng(seed)
    paths = [f"/data/set/images/train/{number:012d}.jpg".encode() for number in range(num_images)]
    counts = rng.integers(0, 2 * boxes_per_image + 1, num_images)
    corners = np.sort(rng.random((counts.sum(), 2, 2), np.float32), axis=1).reshape(-1, 4)
    return ScanTable(
        path_bytes=np.frombuffer(b"".join(paths), np.uint8),
        path_offsets=offsets_of([len(path) for path in paths]),
        boxes_xyxy_rel=corners,
        classes=rng.integers(0, 80, len(corners)).astype(np.int32),
        box_offsets=offsets_of(counts),
        sizes_hw=rng.integers(10, 4000, (num_images, 2)).astype(np.int32),
        stamps=rng.integers(0, 2**60, (num_images, 4)),
        notices=np.zeros((num_images, len(NOTICE_KINDS)), np.uint16),
    )


def assert_same(table: ScanTable, other: ScanTable) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(table, name), getattr(other, name), err_msg=name)
    assert table.rejects == other.rejects and table.sources == other.sources


def read_all(index: ImageIndex) -> list[tuple[str, list, list]]:
    return [(index.path(i), *(part.tolist() for part in index.labels(i))) for i in range(len(index))]


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are scanned during the test."""
    names: list[str] = []
    original = data.indexing.index.scan_images

    def spy(tasks: list, *args: object) -> ScanTable:
        names.extend(Path(task.path).name for task in tasks)
        return original(tasks, *args)

    monkeypatch.setattr(data.indexing.index, "scan_images", spy)
    return names


@pytest.fixture
def dataset(yaml_file: Path) -> DatasetYaml:
    return read_dataset_yaml(yaml_file)


@pytest.mark.parametrize("table", [random_table(30, 3), random_table(5, 0), concatenate([])], ids=len)
def test_save_table__comes_back_the_same(tmp_path: Path, table: ScanTable) -> None:
    save_table(tmp_path / "new" / "x.bin", table, KEY)
    assert_same(load_table(tmp_path / "new" / "x.bin", KEY), table)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.bin"]


def test_save_table__memory_per_image_and_box(tmp_path: Path) -> None:
    table = random_table(20_000, 20)
    save_table(tmp_path / "x.bin", table, KEY)
    path_bytes = len(table.path(0))
    expected = len(table) * (path_bytes + 72) + len(table.classes) * 20
    assert (tmp_path / "x.bin").stat().st_size == pytest.approx(expected, rel=0.01)
    assert sum(getattr(table, name).nbytes for name in ARRAYS) == pytest.approx(expected, rel=0.01)
    million_images_gib = (1_000_000 * (path_bytes + 72) + 20_000_000 * 20) / 2**30
    assert million_images_gib < 0.55


def test_load_table__arrays_lie_in_the_file(tmp_path: Path) -> None:
    save_table(tmp_path / "x.bin", random_table(200, 5), KEY)
    table = load_table(tmp_path / "x.bin", KEY)
    for name in ARRAYS:
        array = getattr(table, name)
        assert not array.flags.writeable and not array.flags.owndata, name
        assert type(array) is np.ndarray  # slices of a np.memmap are ten times as slow


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_load_table__notices_any_damage(tmp_path: Path, place: float, bit: int, cut: bool) -> None:
    file = tmp_path / "x.bin"
    table = dataclasses.replace(random_table(12, 4), sources=(Source("/data", (-1, -1), 12),))
    save_table(file, table, KEY)
    content = bytearray(file.read_bytes())
    position = int(place * len(content))
    if cut:
        del content[position:]
    else:
        content[position] ^= 1 << bit
    file.write_bytes(content)
    try:
        assert_same(load_table(file, KEY), table)  # only the padding between the columns may differ
        assert not cut
    except IndexFileError:
        pass


def test_load_table__notices_damage_in_the_header(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    save_table(file, dataclasses.replace(random_table(3, 1), sources=(Source("/data", (-1, -1), 3),)), KEY)
    content = file.read_bytes()
    assert content.count(b'"/data"') == 1
    file.write_bytes(content.replace(b'"/data"', b'"/dat4"'))
    with pytest.raises(IndexFileError, match="checksum of its header differs"):
        load_table(file, KEY)


def test_load_table__rejects_what_is_not_its_own(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    save_table(file, random_table(3, 1), KEY)
    for content in (b"", b"PK\3\4", pickle.dumps([1, 2]), b"YOLOFITX" + (1 << 62).to_bytes(8, "little")):
        (tmp_path / "y.bin").write_bytes(content)
        with pytest.raises(IndexFileError):
            load_table(tmp_path / "y.bin", KEY)
    with pytest.raises(IndexFileError, match="for another version or data set"):
        load_table(file, "other names")
    with pytest.raises(IndexFileError, match="No such file"):
        load_table(tmp_path / "z.bin", KEY)


def test_build_index__second_start_reads_no_image(
    dataset: DatasetYaml, tmp_path: Path, scanned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = build_index(dataset, "train", tmp_path / "cache")
    assert len(scanned) == 7 and first.origin is not None
    scanned.clear()
    caplog.clear()
    again = build_index(dataset, "train", tmp_path / "cache")
    assert scanned == [] and read_all(again) == read_all(first) == read_all(build_index(dataset, "train"))
    assert "1 images without a label file" in caplog.text  # repairs are told at every start


def test_build_index__reads_only_what_changed(dataset: DatasetYaml, tmp_path: Path, scanned: list[str]) -> None:
    cache = tmp_path / "cache"
    build_index(dataset, "train", cache)
    images = dataset.sources("train")[0]
    labels = images.parent / "labels"

    def step(expected: list[str]) -> None:
        scanned.clear()
        index = build_index(dataset, "train", cache)
        assert scanned == expected
        assert read_all(index) == read_all(build_index(dataset, "train"))
        scanned.clear()
        build_index(dataset, "train", cache)
        assert scanned == []

    (labels / "002.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    step(["002.png"])
    (labels / "004.txt").write_text("1 0.5 0.5 0.1 0.1\n")  # there was none
    step(["004.png"])
    (labels / "000.txt").unlink()
    step(["000.png"])
    cv2.imwrite(str(images / "003.png"), np.zeros((50, 70, 3), np.uint8))
    step(["003.png"])
    assert build_index(dataset, "train", cache).sizes_hw[3].tolist() == [50, 70]
    cv2.imwrite(str(images / "001b.png"), np.zeros((50, 70, 3), np.uint8))
    step(["001b.png"])
    (images / "005.png").unlink()
    step([])
    os.utime(labels / "006.txt", ns=(1, 1))
    step(["006.png"])


def test_build_index__other_class_names_read_everything(
    dataset: DatasetYaml, tmp_path: Path, scanned: list[str]
) -> None:
    build_index(dataset, "train", tmp_path)
    scanned.clear()
    more = DatasetYaml(dataset.file, dataset.root, (*dataset.names, "d"), dataset.splits)
    build_index(more, "train", tmp_path)
    assert len(scanned) == 7


def test_build_index__damaged_file_is_made_again(
    dataset: DatasetYaml, tmp_path: Path, scanned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    build_index(dataset, "train", tmp_path)
    file = next(tmp_path.glob("index-*.bin"))
    file.write_bytes(file.read_bytes()[:-9])
    scanned.clear()
    with caplog.at_level(logging.WARNING):
        build_index(dataset, "train", tmp_path)
    assert len(scanned) == 7 and ": damaged (" in caplog.text and "The index is made again." in caplog.text
    scanned.clear()
    build_index(dataset, "train", tmp_path)
    assert scanned == []


def test_build_index__cache_that_cannot_be_written_costs_only_time(
    dataset: DatasetYaml, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    index = build_index(dataset, "train", tmp_path / "file" / "cache")
    assert len(index) == 7 and index.origin is None
    assert "the index cannot be written" in caplog.text


def test_build_index__bad_images_are_looked_at_again(dataset: DatasetYaml, tmp_path: Path, scanned: list[str]) -> None:
    image = dataset.sources("train")[0] / "002.png"
    whole, found = image.read_bytes(), image.stat()
    image.write_bytes(bytes(len(whole)))
    os.utime(image, ns=(found.st_atime_ns, found.st_mtime_ns))
    file_of = lambda: next((tmp_path / "cache").glob("*.bin")).stat().st_mtime_ns  # noqa: E731
    assert len(build_index(dataset, "train", tmp_path / "cache")) == 6
    written = file_of()
    scanned.clear()
    index = build_index(dataset, "train", tmp_path / "cache")
    assert scanned == ["002.png"] and file_of() == written and index.origin is not None
    assert "002" not in "".join(index.path(i) for i in range(6))
    assert read_all(index) == read_all(build_index(dataset, "train"))
    image.write_bytes(whole)
    os.utime(image, ns=(found.st_atime_ns, found.st_mtime_ns))  # as when a network drive comes back
    assert len(build_index(dataset, "train", tmp_path / "cache")) == 7


def test_scan_split__processes_find_the_same(dataset: DatasetYaml, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = scan_split(dataset, "train")
    monkeypatch.setattr("data.indexing.scan.CHUNK_IMAGES", 2)
    monkeypatch.setattr("data.indexing.scan.MIN_PARALLEL_IMAGES", 3)
    assert_same(scan_split(dataset, "train", workers=2), alone)


@pytest.mark.parametrize("workers", [1, 2])
def test_scan_split__shows_progress_where_there_is_much_to_scan(
    dataset: DatasetYaml, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    shown = []

    def track(results: object, what: str, total: int, transient: bool, disable: bool) -> object:
        shown.append((what, total, disable))
        return results

    monkeypatch.setattr("data.indexing.scan.track", track)
    monkeypatch.setattr("data.indexing.scan.CHUNK_IMAGES", 2)
    scan_split(dataset, "train", workers=workers)
    monkeypatch.setattr("data.indexing.scan.MIN_PARALLEL_IMAGES", 3)
    num_chunks = -(-len(scan_split(dataset, "train", workers=workers)) // 2)
    assert shown == [("scanning train", num_chunks, True), ("scanning train", num_chunks, False)]


def test_image_index__pickles_as_the_name_of_its_file(dataset: DatasetYaml, tmp_path: Path) -> None:
    index = build_index(dataset, "train", tmp_path)
    content = pickle.dumps(index)
    assert len(content) < 1000
    assert read_all(pickle.loads(content)) == read_all(index)
    (dataset.sources("train")[0].parent / "labels" / "000.txt").write_text("")
    build_index(dataset, "train", tmp_path)  # another run, while this one starts its workers
    with pytest.raises(DataError, match=r"another run has made the file again\. Start this run again"):
        pickle.loads(content)
    assert len(index.labels(0)[0]) == 2  # what is mapped already stays as it was


class TestScanTable:
    def test_take_and_concatenate_move_rows_with_all_that_belongs_to_them(self) -> None:
        tables = [random_table(6, 2, seed=1), random_table(4, 3, seed=2)]
        tables[1].rejects[2] = Reject(False, "x")
        both = concatenate(tables)
        rows = np.array([9, 0, 8, 3])
        taken = both.take(rows)
        assert [taken.path(i) for i in range(4)] == [both.path(row) for row in rows]
        for new, old in enumerate(rows):
            parts = [
                table.boxes_xyxy_rel[slice(*table.box_offsets[i : i + 2])] for table, i in ((taken, new), (both, old))
            ]
            np.testing.assert_array_equal(*parts)
        np.testing.assert_array_equal(taken.stamps, both.stamps[rows])
        assert taken.rejects == {2: Reject(False, "x")}
