"""The message of an error in a worker reaches the user unchanged."""

from __future__ import annotations

import pytest
from torch._utils import ExceptionWrapper

from data.errors import DataError


def test_data_error__is_one_line_after_a_worker_process() -> None:
    try:
        raise DataError("x.txt:3: class 7: correct it")
    except DataError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(DataError) as caught:
        wrapped.reraise()
    assert str(caught.value) == "x.txt:3: class 7: correct it"
    assert isinstance(caught.value, ValueError)


def test_data_error__is_one_line_whatever_a_file_is_called() -> None:
    assert str(DataError("a\nb.jpg: the file is empty")) == "a\\nb.jpg: the file is empty"
