"""What the data module adds to what tests of `data` and whole runs hold."""

from __future__ import annotations

from unittest import mock

import pytest

from engine.loop.datamodule import DetectionData


@pytest.mark.parametrize("before", ["pools of 64 images", "the whole data set", None])
def test_load_state_dict__says_that_mosaic_partners_change(before: str | None, capsys: pytest.CaptureFixture) -> None:
    data = mock.Mock(loading=mock.Mock(partners="the whole data set"))
    state = DetectionData.state_dict(data) | {"mosaic_partners": before} if before else {}
    DetectionData.load_state_dict(data, state)
    printed = capsys.readouterr().out
    assert ("note: mosaic partners come from the whole data set" in printed) is (before == "pools of 64 images")
