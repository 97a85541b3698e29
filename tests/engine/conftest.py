from __future__ import annotations

import pytest

from tests.helpers.checkpoints import Overfitted, overfit


@pytest.fixture(scope="session")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    """A network that finds something, trained once for all tests that need one."""
    return overfit(tmp_path_factory.mktemp("overfitted"))
