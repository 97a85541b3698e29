from __future__ import annotations

from pathlib import Path

import fidelity_run

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from models.weights.saved_weights import read_weights


def test_copy_data__leaves_the_source_alone_and_is_complete(tmp_path: Path) -> None:
    source = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=2, num_val=1, image_size=96))
    before = sorted((path, path.stat().st_mtime_ns) for path in source.parent.rglob("*"))
    copied = read_dataset_yaml(fidelity_run.copy_data(source, tmp_path / "copy"))
    assert copied.names == read_dataset_yaml(source).names
    assert all(path.is_relative_to(tmp_path / "copy") for split in copied.splits.values() for path in split)
    assert len(list((tmp_path / "copy").rglob("*.jpg"))) == 3 == len(list((tmp_path / "copy").rglob("*.txt")))
    assert sorted((path, path.stat().st_mtime_ns) for path in source.parent.rglob("*")) == before


def test_hold_back__moves_the_last_training_images_to_validation(tmp_path: Path) -> None:
    source = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=5, num_val=2, image_size=96))
    data = fidelity_run.copy_data(source, tmp_path / "copy")
    fidelity_run.hold_back(data, 2)
    description = read_dataset_yaml(data)
    found = {split: build_index(description, split) for split in ("train", "val")}
    names = {split: [Path(index.path(i)).stem for i in range(len(index))] for split, index in found.items()}
    assert names["train"] == ["00000", "00001", "00002"]
    assert sorted(names["val"]) == ["00000", "00001", "00003", "00004"]
    assert all(len(index.classes) for index in found.values())


def test_first_weights__are_those_of_the_seed(tmp_path: Path) -> None:
    source = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=1, num_val=1, image_size=96))
    states = []
    for name, seed in (("a.pt", 0), ("b.pt", 0), ("c.pt", 1)):
        fidelity_run.write_first_weights(tmp_path / name, source, seed, 96)
        states.append(read_weights(tmp_path / name).state["model.0.conv.weight"])
    assert states[0].equal(states[1]) and not states[0].equal(states[2])
