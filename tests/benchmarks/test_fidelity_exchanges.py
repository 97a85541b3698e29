from __future__ import annotations

from pathlib import Path
from unittest import mock

import common
import fidelity_exchanges
import torch

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset


def test_windows__survive_the_way_to_their_batches_and_back() -> None:
    window = common.random_window(3, 64)
    back = fidelity_exchanges.as_window(fidelity_exchanges.as_their_batch(window))
    assert torch.equal(back.images, window.images) and back.names == window.names
    assert torch.equal(back.classes, window.classes) and torch.equal(back.image_index, window.image_index)
    torch.testing.assert_close(back.boxes_xyxy_px, window.boxes_xyxy_px)


def test_our_windows__count_the_epochs_that_are_read(tmp_path: Path) -> None:
    source = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=4, num_val=1, image_size=96))
    run = mock.Mock(data=source, close_mosaic=1, augment={}, image_size=64, seed=0, epochs=2, batch=2)
    windows = fidelity_exchanges.OurWindows(run, [None, None])
    iter(windows)  # Ultralytics' trainer asks for two iterators an epoch, and reads one
    assert windows.epoch == 0 and len(list(windows)) == 2 and windows.epoch == 1
    iter(windows)
    assert len(list(windows)) == 2 and windows.epoch == 2
