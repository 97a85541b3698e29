"""Every form of data.yaml that people write, and one clear sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data.errors import DataError
from data.formats.dataset_yaml import DatasetYaml, read_dataset_yaml


def read(folder: Path, content: dict | str) -> DatasetYaml:
    """Write ``folder/data.yaml`` and read it."""
    file = folder / "data.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_dataset_yaml(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images/train", "images/val", "extra"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "list.txt").write_text("images/train/a.png\n")
    return tmp_path


def base(**changes: object) -> dict:
    return {"train": "images/train", "val": "images/val", "names": ["a", "b"], **changes}


def test_read_dataset_yaml__paths_relative_to_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "data.yaml").write_text(yaml.safe_dump(base()))
    monkeypatch.chdir(folder)
    dataset = read_dataset_yaml("data.yaml")
    assert dataset.file == folder / "data.yaml"
    assert dataset.sources("train") == (folder / "images/train",)
    assert dataset.names == ("a", "b") and dataset.num_classes == 2


@pytest.mark.parametrize("path", [".", "", None, "images/.."])
def test_read_dataset_yaml__path_is_relative_to_the_file(folder: Path, path: str | None) -> None:
    source = read(folder, base(path=path)).sources("val")[0]
    assert source.resolve() == folder / "images/val"


def test_read_dataset_yaml__path_goes_before_the_folder_of_the_file(folder: Path) -> None:
    (folder / "copy/images/train").mkdir(parents=True)
    dataset = read(folder, base(path="copy"))
    assert dataset.sources("train") == (folder / "copy/images/train",)
    assert dataset.sources("val") == (folder / "images/val",)  # only there


def test_read_dataset_yaml__absolute_path_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    dataset = read(elsewhere, base(path=str(folder)))
    assert dataset.sources("train") == (folder / "images/train",)
    assert dataset.root == folder


def test_read_dataset_yaml__root_of_another_machine_falls_back_to_the_file(folder: Path) -> None:
    assert read(folder, base(path="/no/such/root")).sources("train") == (folder / "images/train",)


def test_read_dataset_yaml__several_sources_and_list_files(folder: Path) -> None:
    dataset = read(folder, base(train=["images/train", "extra", "list.txt"]))
    assert dataset.sources("train") == (folder / "images/train", folder / "extra", folder / "list.txt")


def test_read_dataset_yaml__roboflow_parent_that_is_not_there(folder: Path) -> None:
    assert read(folder, base(train="../images/train")).sources("train") == (folder / "images/train",)


def test_read_dataset_yaml__parent_that_is_there_is_used(folder: Path) -> None:
    (folder / "sub/images/train").mkdir(parents=True)
    source = read(folder / "sub", base(train="../images/train", val="../images/val")).sources("train")[0]
    assert source.resolve() == folder / "images/train"


def test_read_dataset_yaml__parent_of_the_file_when_the_root_is_not_there(folder: Path) -> None:
    (folder / "sub").mkdir()
    dataset = read(folder / "sub", base(path="/no/such/root", train="../images/train", val="../images/val"))
    assert dataset.sources("train")[0].resolve() == folder / "images/train"


def test_read_dataset_yaml__names_as_map_in_any_order(folder: Path) -> None:
    text = "train: images/train\nval: images/val\nnames:\n  1: b\n  0: a\n  2: 7\nnc: 3\n"
    assert read(folder, text).names == ("a", "b", "7")  # safe_dump would sort them


@pytest.mark.parametrize(
    "form", ["[0603, no, 1.50, 2024-01-01, 'x']", "{0: 0603, 1: no, 2: 1.50, 3: 2024-01-01, 4: x}"]
)
def test_read_dataset_yaml__names_as_they_are_written(folder: Path, form: str) -> None:
    """Sizes of electronic parts: to YAML 0603 is an octal number."""
    assert read(folder, f"train: images/train\nnames: {form}\n").names == ("0603", "no", "1.50", "2024-01-01", "x")


def test_read_dataset_yaml__names_of_a_merged_map(folder: Path) -> None:
    text = "x: &x {names: &n {0: a}}\ntrain: images/train\n"
    assert read(folder, f"{text}<<: *x\n").names == ("a",)
    assert read(folder, f"{text}names: {{<<: *n, 1: 0402}}\n").names == ("a", "0402")


def test_read_dataset_yaml__same_images_for_both_splits(folder: Path) -> None:
    dataset = read(folder, base(val="images/train"))
    assert dataset.sources("val") == dataset.sources("train")


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("entry", ["images/nothing", "../test/images", "x" * 300, "/no/such/images"])
def test_sources__of_a_split_that_is_not_there(folder: Path, split: str, entry: str) -> None:
    """Exporters name three splits; only a command that uses a split needs it."""
    dataset = read(folder, base(test="extra") | {split: entry})
    for other in {"train", "val", "test"} - {split}:
        assert dataset.sources(other)
    with pytest.raises(DataError, match=rf"data\.yaml: {split}: '{entry}': .* does not exist\. Give a folder"):
        dataset.sources(split)


def test_sources__of_a_split_that_would_be_downloaded(folder: Path) -> None:
    dataset = read(folder, base(val="nothing", download="https://example.org/x.zip"))
    with pytest.raises(DataError, match=r"\(yolofit does not run 'download': fetch the data set first\)"):
        dataset.sources("val")


@pytest.mark.parametrize("key", ["valid", "validation"])
def test_sources__validation_by_other_names(folder: Path, key: str) -> None:
    assert read(folder, {"train": "images/train", key: "images/val", "names": ["a"]}).sources("val")


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        (None, "/content/drive/My Drive/set/images/train"),
        (None, "C:\\Users\\me\\set\\images\\train"),
        (None, "D:/set/images/train"),
        (None, "images\\train"),
        (None, "..\\images\\train"),
        ("/content/set", "images/train"),
        ("C:\\set", "images\\train"),
        ("../datasets/set", "images/train"),
    ],
)
def test_sources__of_another_machine_are_found_and_told(folder: Path, path: str | None, entry: str) -> None:
    dataset = read(folder, base(path=path, train=entry))
    assert dataset.sources("train") == (folder / "images/train",)
    [note] = dataset.notes["train"]
    assert f"does not exist. {folder / 'images/train'} is used instead" in note and "\n" not in note


def test_sources__of_another_machine_below_the_working_directory(folder: Path, tmp_path_factory, monkeypatch) -> None:
    monkeypatch.chdir(folder.parent)
    dataset = read(tmp_path_factory.mktemp("configs"), base(path=f"somewhere/{folder.name}"))
    assert dataset.sources("val") == (folder / "images/val",) and dataset.notes["val"]


def test_sources__of_another_machine_never_mean_the_same_folder(folder: Path) -> None:
    """Both entries end in ``images``, which exists once, so neither may claim it."""
    (folder / "train").mkdir()
    dataset = read(folder, base(train="/a/train/images", val="/a/val/images"))
    assert set(dataset.missing) == {"train", "val"}
    dataset = read(folder, base(train="/a/one/train", val="/b/two/train"))
    assert dataset.splits == {"train": (folder / "train",)} and set(dataset.missing) == {"val"}


def test_sources__in_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    by_root = read(elsewhere, base(path=f"~/{folder.name}"))
    assert by_root.sources("train") == (folder / "images/train",) and not by_root.notes["train"]
    assert read(elsewhere, base(train=f"~/{folder.name}/extra")).sources("train") == (folder / "extra",)
    assert read(folder, "path: ~\ntrain: images/train\nnames: [a]\n").root == folder  # YAML's null


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_read_dataset_yaml__text_of_windows(folder: Path, encoding: str) -> None:
    (folder / "data.yaml").write_bytes("train: images/train\r\nnames:\r\n- ü\r\n- b\r\n".encode(encoding))
    assert read_dataset_yaml(folder / "data.yaml").names == ("ü", "b")


@pytest.mark.parametrize("form", ['{"0": a, "1": b}', '{1: b, "0": a}', "{00: a, 01: b}"])
def test_read_dataset_yaml__names_with_text_keys(folder: Path, form: str) -> None:
    assert read(folder, f"train: images/train\nnames: {form}\nnc: '2'\n").names == ("a", "b")


def test_read_dataset_yaml__key_points(folder: Path) -> None:
    assert read(folder, base(kpt_shape=[17, 3])).num_keypoint_values == 51
    assert read(folder, base()).num_keypoint_values == 0


def test_sources__of_a_split_that_is_not_given(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.yaml: no key 'test'. Name the folder of the test images"):
        read(folder, base(test="")).sources("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [a", "not valid YAML"),
        ("names: [2026-13-01]", "not valid YAML \\(month must be in 1..12"),  # read as a date, of no month
        ("names: " + "[" * 5000, "not valid YAML"),
        ("- a\n- b", r"not a map of keys\. Write keys such as train, val and names"),
        ("", "not a map of keys"),
        ("train: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (base(names=None), "names: None: not a list of names nor a map"),
        (base(names="a b"), "names: 'a b': not a list"),
        (base(names={0: "a", 2: "b"}), r"names: \[0, 2\]: the ids are not 0 to 1"),
        (base(names={"a": 0}), r"names: \['a'\]: the ids are not 0 to 0"),
        (base(names=["a", {"b": 1}]), "names: {'b': '1'}: not a name. Put quotes around it"),
        (base(nc=3), "nc: 3: there are 2 names. Make the two agree"),
        ({"names": ["a"]}, "no key 'train'. Name the folder of the training images"),
        (base(train=None, val=""), "no key 'train'"),
        (base(train={"a": 1}), "train: {'a': 1}: not a path"),
        (base(train=[3]), r"train: \[3\]: not a path"),
        (base(names=["a", " "]), "names: ' ': not a name"),
        (base(names=["a", "\ud83d"]), "names: '.ud83d': not a name"),
        (base(names="pad, via"), r"names: 'pad, via': not a list of names .*\. Write \[pad, via\]"),
        (base(names=["b", "a", "c", "a"]), r"names: 'a': occurs 2 times\. Give each class a name of its own\."),
        (base(names={0: "a", 1: "a"}), "names: 'a': occurs 2 times"),
        (base(kpt_shape=17), "kpt_shape: 17: not a number of key points and 2 or 3"),
        (base(kpt_shape=[17, 4]), r"kpt_shape: \[17, 4\]: not a number"),
        ("train: images/train\nnames: [a]\ntrain: images/val\n", "the key 'train' occurs twice. Remove one of them"),
        ("train: images/train\nnames: {0: a, 1: b, 0: c}\n", "the key '0' occurs twice"),
        ("train: images/train\nnames: {0: a, '0': c}\n", "the key '0' occurs twice"),
    ],
)
def test_read_dataset_yaml__rejects(folder: Path, content: dict | str, message: str) -> None:
    with pytest.raises(DataError, match=rf"data\.yaml: {message}") as caught:
        read(folder, content)
    assert "\n" not in str(caught.value)


def test_read_dataset_yaml__rejects_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.yaml: no such file"):
        read_dataset_yaml(tmp_path / "x.yaml")
    with pytest.raises(DataError, match=r": a folder\. Give the data\.yaml file inside it"):
        read_dataset_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\x89PNG\xff\xfe\x00\x9f")
    with pytest.raises(DataError, match=r"binary\.yaml: cannot be read"):
        read_dataset_yaml(tmp_path / "binary.yaml")
