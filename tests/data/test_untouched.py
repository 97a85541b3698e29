"""The data set is only read, nothing in it is executed, and files beside the images change no sample."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.augmentation.augment import AugmentConfig
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from data.loading.dataset import TrainDataset, ValidationDataset
from data.loading.sampler import SampleKey
from engine.inspect import main as inspect

SAMPLE_HASH = """
import hashlib, sys
for name in sys.argv[2:]:
    sys.modules[name] = None  # importing it fails, as if it were not installed
from data.augmentation.augment import AugmentConfig
from data.loading.dataset import TrainDataset
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from data.loading.sampler import SampleKey
dataset = TrainDataset(build_index(read_dataset_yaml(sys.argv[1]), "train"), 64, AugmentConfig(), 3, 20)
digest = hashlib.sha256()
for key in [SampleKey(epoch, index) for epoch in (0, 1, 15) for index in range(7)]:
    sample = dataset[key]
    digest.update(sample.image.numpy().tobytes() + sample.boxes_xyxy_px.numpy().tobytes())
print(digest.hexdigest())
"""


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.file}",)


def tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        digest.update(f"{path.relative_to(folder)} {found.st_mode} {found.st_mtime_ns} {found.st_size}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def sample_hash(yaml_file: Path, *missing: str) -> str:
    command = [sys.executable, "-c", SAMPLE_HASH, str(yaml_file), *missing]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def use_everything(yaml_file: Path, cache: Path) -> None:
    """Index, inspect, and an epoch of training and validation."""
    index = build_index(read_dataset_yaml(yaml_file), "train", cache)
    inspect([f"--root={yaml_file}", f"--output={cache / 'inspect'}", "--workers=1", "--json"])
    train = TrainDataset(index, 64, AugmentConfig(), seed=0, max_epochs=20)
    for i in range(len(index)):
        train[SampleKey(0, i)]
        ValidationDataset(index, 64)[SampleKey(0, i)]


def put_traps(root: Path, mark: Path) -> None:
    """Files that Ultralytics would load from beside the images: pickles, and other images."""
    poison = pickle.dumps(Payload(mark))
    for folder in (root, root / "train", root / "train/images", root / "train/labels"):
        for name in ("labels.cache", "train.cache", "images.cache", "data.cache"):
            (folder / name).write_bytes(poison)
    for image in (root / "train/images").glob("*.png"):
        np.save(image.with_suffix(".npy"), np.full((64, 64, 3), 255, np.uint8))
    np.save(root / "train/labels/000.npy", np.array([Payload(mark)], object), allow_pickle=True)


def test_samples__do_not_depend_on_optional_packages_or_on_files_beside_the_images(
    yaml_file: Path, tmp_path: Path
) -> None:
    plain = sample_hash(yaml_file)
    assert sample_hash(yaml_file, "albumentations", "ultralytics", "matplotlib", "lightning") == plain
    put_traps(yaml_file.parent, tmp_path / "executed")
    assert sample_hash(yaml_file) == plain
    assert not (tmp_path / "executed").exists()
    image = yaml_file.parent / "train/images/001.png"
    image.write_bytes((yaml_file.parent / "train/images/000.png").read_bytes())
    assert sample_hash(yaml_file) != plain  # so it would have shown


def test_data_set__is_not_changed_and_nothing_in_it_is_executed(yaml_file: Path, tmp_path: Path) -> None:
    put_traps(yaml_file.parent, tmp_path / "executed")
    before = tree_hash(yaml_file.parent)
    use_everything(yaml_file, tmp_path / "cache")
    use_everything(yaml_file, tmp_path / "cache")  # now from the index file
    assert tree_hash(yaml_file.parent) == before
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()  # so the traps would have worked


def test_data_set__in_a_read_only_folder_works(yaml_file: Path, tmp_path: Path) -> None:
    paths = [yaml_file.parent, *yaml_file.parent.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree_hash(yaml_file.parent)
    try:
        use_everything(yaml_file, tmp_path / "cache")
        assert tree_hash(yaml_file.parent) == before and any((tmp_path / "cache").iterdir())
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_index_file__with_a_pickle_inside_is_made_again_unexecuted(yaml_file: Path, tmp_path: Path) -> None:
    dataset = read_dataset_yaml(yaml_file)
    build_index(dataset, "train", tmp_path / "cache")
    file = next((tmp_path / "cache").glob("*.bin"))
    file.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    assert len(build_index(dataset, "train", tmp_path / "cache")) == 7
    np.save(tmp_path / "poison.npy", np.array([Payload(tmp_path / "executed")], object), allow_pickle=True)
    file.write_bytes((tmp_path / "poison.npy").read_bytes())
    assert len(build_index(dataset, "train", tmp_path / "cache")) == 7
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory accounting of Linux")
def test_index__reading_it_in_forked_workers_copies_nothing(yaml_file: Path, tmp_path: Path) -> None:
    """Workers read all labels three times, and their RSS stays flat: no page of the index is copied."""
    script = f"""
import os
from pathlib import Path
from data.indexing.index import build_index
from data.indexing.index_file import save_table, load_table
from data.indexing.index import index_of
from index_scale import synthetic_table
file = Path({str(tmp_path / "big.bin")!r})
save_table(file, synthetic_table(60_000), "")
index = index_of(load_table(file, ""))
def private_kib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
def read_all():
    return sum(len(index.path(i)) + len(index.labels(i)[0]) for i in range(len(index)))
if os.fork() == 0:
    read_all()
    first = private_kib()
    for _ in range(3):
        read_all()
    print(private_kib() - first, flush=True)
    os._exit(0)
os.wait()
"""
    command = [sys.executable, "-c", script]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")])}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(result.stdout) < 1024  # the index has 31 MiB
