"""Files that would run code, or eat the machine, if they were unpickled; and that honest ones are read exactly."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.weights import restricted_pickle
from models.weights.restricted_pickle import (
    Inert,
    Name,
    PickledTensor,
    RestrictedPickleError,
    SavedFile,
    Storage,
    interpret,
)


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple:
        return self.call


def touch(path: Path) -> str:
    return f"touch {path}"


def attacks(trap: Path) -> dict[str, bytes]:
    """Pickles of many kinds, each of which makes the file ``trap`` when it is unpickled."""
    command, path = touch(trap).encode(), str(trap)
    open_it = f"open({path!r}, 'w')"
    return {
        "reduce os.system": pickle.dumps(Call(os.system, touch(trap))),
        "reduce eval": pickle.dumps(Call(eval, open_it)),
        "reduce exec, protocol 0": pickle.dumps(Call(exec, open_it), protocol=0),
        "reduce in a state dict": pickle.dumps({"model.0.conv.weight": Call(os.system, touch(trap))}),
        "popen": pickle.dumps(Call(subprocess.Popen, ["touch", path])),
        "dotted name, protocol 4": b"\x80\x04\x8c\x07pathlib\x8c\x0aPath.touch\x93\x8c"
        + bytes([len(path)])
        + path.encode()
        + b"\x85R.",
        "getattr of a module": b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(Vos\ntRVsystem\ntR"
        + b"(V"
        + command
        + b"\ntR.",
        "inst": b"(V" + command + b"\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nV" + command + b"\no.",
        "newobj": b"\x80\x02cos\nsystem\nV" + command + b"\n\x85\x81.",
        "newobj_ex": b"\x80\x04cos\nsystem\nV" + command + b"\n\x85}\x92.",
        "allow-listed function with a state": pickle.dumps(
            Call(torch._utils._rebuild_parameter, Call(os.system, touch(trap)), True, OrderedDict())
        ),
        "build with a __setstate__": b"\x80\x02ctorch.nn.modules.conv\nConv2d\n)\x81}U\x0c__setstate__cos\nsystem\nsb"
        + b"V"
        + command
        + b"\nb.",
        "build on a class": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__cos\nsystem\ns\x86b.",
        "persistent id": b"\x80\x02cos\nsystem\n(V" + command + b"\ntRQ.",
    }


ATTACKS = tuple(attacks(Path("trap")))


def save_zip(path: Path, program: bytes, records: dict[str, bytes] | None = None, compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        for name, content in (records or {}).items():
            file.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("kind", ATTACKS)
def test_saved_file__runs_nothing(kind: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    try:
        with SavedFile(save_zip(tmp_path / "evil.pt", attacks(trap)[kind])):
            pass
    except RestrictedPickleError:
        pass
    assert not trap.exists()
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults


UNPICKLE = """
import io, pickle, sys
class Unpickler(pickle.Unpickler):
    def persistent_load(self, identity): return identity
Unpickler(io.BytesIO(sys.stdin.buffer.read())).load()
"""
ELSEWHERE = [kind for kind in ATTACKS if kind not in ("build on a class", "newobj", "newobj_ex")]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_attacks__do_harm_to_the_pickle_module(kind: str, tmp_path: Path) -> None:
    """Or the test above would show nothing. The three that are left out hit only other unpicklers."""
    trap = tmp_path / "trap"
    program = attacks(trap)[kind]
    subprocess.run([sys.executable, "-c", UNPICKLE], input=program, capture_output=True, check=False, timeout=120)
    assert trap.exists()


def test_saved_file__survives_a_recursion(tmp_path: Path) -> None:
    """A deep tuple as a key: hashing it overflows the C stack of CPython and kills the process."""
    program = b"\x80\x02})" + b"\x85" * 10**6 + b"Ns."
    with SavedFile(save_zip(tmp_path / "deep.pt", program)) as file:
        assert file.content == {}


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"\x80\x02Nr\xff\xff\xff\xff.", id="memo number four billion"),
        pytest.param(b"\x80\x02(" + b"N2" * 1000 + b"t.", id="duplicates"),
        pytest.param(b"\x80\x04X\xff\xff\xff\x7fabc.", id="string of two billion bytes"),
        pytest.param(b"\x80\x02\x8b\xff\xff\xff\x7f1.", id="number of two billion bytes"),
        pytest.param(b"\x80\x05\x97.", id="buffer out of band"),
        pytest.param(b"\x80\x02\x82\x01.", id="extension registry"),
        pytest.param(b"\x80\x02\x84\xff\xff\xff\x7f.", id="extension registry, four bytes"),
        pytest.param(b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", id="bytearray of 2**63 bytes"),
        pytest.param(b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.", id="frame of 2**63 bytes"),
        pytest.param(b"\x80\x021t(1.", id="marks that are not there"),
        pytest.param(b"Pa name\n.", id="persistent id as text"),
        pytest.param(b"\x80\x02" + b"]q\x00" + b"h\x00a" * 10**5 + b".", id="list that holds itself"),
    ],
)
def test_interpret__needs_little_memory(program: bytes) -> None:
    """The unpickler written in C makes room for four billion memos, 32 GiB."""
    tracemalloc.start()
    try:
        interpret(program)
    except RestrictedPickleError:
        pass
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 8 * 2**20


@settings(max_examples=300, deadline=None)
@given(program=st.binary(max_size=60))
def test_interpret__any_bytes_end_well(program: bytes) -> None:
    for start in (b"", b"\x80\x02"):
        try:
            interpret(start + program + b".")
        except RestrictedPickleError as error:
            assert "\n" not in str(error)


def corrupted(program: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(program)
    for place, value in changes:
        changed[place % len(changed)] = value
    return bytes(changed)


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
def test_interpret__a_damaged_file_ends_well(changes: list[tuple[int, int]]) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.rand(3), "b": {"names": ["x", 1, 2.5, None, True], "m": torch.nn.Linear(2, 3)}}, buffer)
    with zipfile.ZipFile(buffer) as file:
        program = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    try:
        interpret(corrupted(program, changes))
    except RestrictedPickleError as error:
        assert "\n" not in str(error)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(value=VALUES, protocol=st.integers(2, 5))
def test_interpret__plain_values_come_back(value: Any, protocol: int) -> None:
    if b"\nbytes\n" not in (program := pickle.dumps(value, protocol)) and b"_codecs" not in program:
        assert interpret(program) == value  # in protocol 2, bytes are a call


TENSORS = {
    "fp32": torch.rand(2, 3),
    "fp16": torch.rand(4).half(),
    "bf16": torch.rand(2, 2, 2).bfloat16(),
    "fp64": torch.rand(3, dtype=torch.float64),
    "int64": torch.tensor(7),
    "int8": torch.tensor([-1, 2], dtype=torch.int8),
    "bool": torch.tensor([True, False]),
    "transposed": torch.rand(3, 5).T,
    "part": torch.rand(10)[2:5],
    "empty": torch.empty(0, 4),
    "parameter": torch.nn.Parameter(torch.rand(2)),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensor__equals_what_was_saved(kind: str, tmp_path: Path) -> None:
    torch.save(OrderedDict(weight=TENSORS[kind]), tmp_path / "file.pt")
    with SavedFile(tmp_path / "file.pt") as file:
        tensor = file.tensor(file.content["weight"])
    assert tensor.dtype == TENSORS[kind].dtype
    assert torch.equal(tensor, TENSORS[kind])
    assert not tensor.requires_grad


def test_content__of_a_pickled_module(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "file.pt")
    with SavedFile(tmp_path / "file.pt") as file:
        assert isinstance(file.content, Inert)
        assert file.content.called == Name("torch.nn.modules.linear", "Linear")
        assert isinstance(file.content.attributes["_parameters"]["bias"], PickledTensor)


def test_content__of_classes_that_are_not_installed_or_not_imported() -> None:
    """The class of a file is a name and a state: its ``__setstate__``, its slots and its module are never asked."""
    sys.modules.pop("this", None)  # prints when it is imported
    program = b"\x80\x02cthis\nModel\n)\x81N}U\x05namesK\x03s\x86b."
    found = interpret(program)
    assert (found.called, found.state) == (Name("this", "Model"), (None, {"names": 3}))
    assert found.attributes == {} and "this" not in sys.modules
    assert interpret(program.replace(b"N}", b"}").replace(b"\x86", b"")).attributes == {"names": 3}


@pytest.mark.parametrize("program", [b"(lp0\n.", b"(dp0\n.", b"(ios\ngetcwd\n.", b"(cos\ngetcwd\no."])
def test_interpret__refuses_instructions_that_torch_save_does_not_use(program: bytes) -> None:
    with pytest.raises(RestrictedPickleError, match=r"^uses the pickle instruction \w+, which torch\.save does not$"):
        interpret(program)


STORAGE = Storage(torch.float32, "0", 4)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (PickledTensor(STORAGE, 1, (4,), (1,)), "beyond its storage"),
        (PickledTensor(STORAGE, 0, (2, 2), (4, 1)), "beyond its storage"),
        (PickledTensor(STORAGE, 0, (10**12,), (0,)), "beyond its storage"),
        (PickledTensor(Storage(torch.float32, "0", 10**12), 0, (10**12,), (1,)), "not complete"),
        (PickledTensor(Storage(torch.float32, "../data.pkl", 4), 0, (4,), (1,)), "is damaged"),
        (PickledTensor(Storage(torch.float32, "1", 4), 0, (4,), (1,)), "is damaged"),
    ],
)
def test_tensor__stays_within_its_storage(tensor: PickledTensor, message: str, tmp_path: Path) -> None:
    path = save_zip(tmp_path / "file.pt", b"N.", {"data/0": struct.pack("<4f", 1, 2, 3, 4)})
    with SavedFile(path) as file:
        assert file.tensor(PickledTensor(STORAGE, 0, (4,), (1,))).tolist() == [1, 2, 3, 4]
        with pytest.raises(RestrictedPickleError, match=message):
            file.tensor(tensor)


TENSOR_PROGRAM = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQI0\n%s%sI00\nNtR."
)


@pytest.mark.parametrize("size", [(0, 2**61, 2**61), (-1,), (2**70,), (1,) * 20, (1.0,), "ab", None])
def test_interpret__rejects_impossible_shapes(size: Any) -> None:
    stride = (1,) * len(size or ())
    with pytest.raises(RestrictedPickleError, match=r"impossible shape|unknown way"):
        interpret(TENSOR_PROGRAM % (pickle.dumps(size, 0)[:-1], pickle.dumps(stride, 0)[:-1]))
    assert interpret(TENSOR_PROGRAM % (b"(I4\nt", b"(I1\nt")) == PickledTensor(STORAGE, 0, (4,), (1,))


def test_tensor__one_storage_read_again_and_again_has_an_end(tmp_path: Path) -> None:
    path = save_zip(tmp_path / "file.pt", b"N.", {"data/0": bytes(4 * 10**6)})
    tensor = PickledTensor(Storage(torch.float32, "0", 10**6), 0, (10**6,), (1,))
    with SavedFile(path) as file, pytest.raises(RestrictedPickleError, match="many times"):
        for _ in range(3):
            file.tensor(tensor)


def test_saved_file__rejects_compressed_records(tmp_path: Path) -> None:
    """A bomb: 64 MB of zeros in 64 KB."""
    path = save_zip(tmp_path / "bomb.pt", b"N" * 2**26 + b".", compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    with pytest.raises(RestrictedPickleError, match="compressed"):
        SavedFile(path)


def test_saved_file__rejects_what_is_none(tmp_path: Path) -> None:
    torch.save({"a": torch.rand(1000)}, tmp_path / "good.pt")
    content = (tmp_path / "good.pt").read_bytes()
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("old", "cut", "text", "empty"):
        with pytest.raises(RestrictedPickleError, match=r"is not a file of torch\.save's present format"):
            SavedFile(tmp_path / f"{name}.pt")
    save_zip(tmp_path / "other.zip", b"N.").rename(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "picture.pt", "w") as file:
        file.writestr("picture.txt", "")
    with pytest.raises(RestrictedPickleError, match=r"no data\.pkl"):
        SavedFile(tmp_path / "picture.pt")


def test_saved_file__a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "file.pt")
    content = bytearray((tmp_path / "file.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "file.pt").write_bytes(content)
    with SavedFile(tmp_path / "file.pt") as file, pytest.raises(RestrictedPickleError, match="damaged"):
        file.tensor(file.content["a"])


def test_rebuild__calls_only_functions_of_its_own_module() -> None:
    for function in restricted_pickle.REBUILD.values():
        assert function.__module__ == restricted_pickle.__name__
