from __future__ import annotations

import autobatch
import pytest


def test_expected_bytes__are_those_of_autobatch_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autobatch, "check_train_batch_size", autobatch.pretended_choice)
    monkeypatch.setattr(autobatch, "fresh_network", lambda: None)
    batch, messages = autobatch.chosen_batch(0.6)
    assert batch == 2 and autobatch.expected_bytes(messages) == round(4.71 * 2**30)
    assert autobatch.expected_bytes(["error detected"]) is None
