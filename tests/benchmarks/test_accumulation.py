from __future__ import annotations

from pathlib import Path

import accumulation

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.formats.dataset_yaml import read_dataset_yaml


def test_gradients__of_whole_windows_are_those_of_ultralytics(tmp_path: Path) -> None:
    config = SyntheticConfig(num_train=accumulation.NUM_IMAGES, num_val=1, image_size=96)
    windows = accumulation.make_windows(read_dataset_yaml(generate_pcb_dataset(tmp_path / "boards", config)), 96, 1)
    network = accumulation.make_network(windows, 25, num_steps=1)
    theirs = accumulation.ultralytics_gradient(network, windows[0], 16)
    assert accumulation.relative_error(accumulation.yolofit_gradient(network, windows[0], 16), theirs) < 1e-3
