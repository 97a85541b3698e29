"""Reads files of ``torch.save`` without running code from them.

A pickle is a small program, and unpickling calls whatever function it names. A subclass of `pickle.Unpickler` does not
prevent all harm: before it asks any method, the number of a memo can make it allocate 64 GiB, and the hash of a deep
tuple can end the process. So `pickletools` splits the program into instructions, and a short interpreter carries out
those that move plain values. Each name becomes a `Name`, each call an `Inert` record of the function and its arguments,
and each tensor a `PickledTensor`, which `SavedFile.tensor` reads on demand. The interpreter calls only the four
functions of this file in `REBUILD`. So files that pickle whole Python objects, like those of Ultralytics, can be
searched for tensors and names too.

The size of the file bounds time and memory: records must be uncompressed, as ``torch.save`` writes them, and a tensor
must lie within its storage.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

MAX_AXES = 16  # axes of a tensor
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class RestrictedPickleError(ValueError):
    """The file is damaged, of another kind, or malicious. The message is one line without the file's name."""


class Name(NamedTuple):
    """Module and name of a Python object in the file. The object is never imported."""

    module: str
    name: str


@dataclass(eq=False, repr=False)
class Inert:
    """Record of an object that unpickling would have created: the call, its arguments and the state."""

    called: object
    """The called `Name`, or any other value that the file put there."""
    args: object
    state: object = None
    """State of the object; for an ordinary object the dict of its attributes."""
    items: dict[object, object] = field(default_factory=dict)
    """Items that unpickling would have set by key."""
    elements: list[object] = field(default_factory=list)
    """Elements that unpickling would have appended."""

    @property
    def attributes(self) -> dict[object, object]:
        """Attributes of the object; empty if its state is not a dict."""
        return self.state if isinstance(self.state, dict) else {}


class Storage(NamedTuple):
    """Numbers in the record ``data/<key>`` of the file."""

    dtype: torch.dtype
    key: str
    num_elements: int


class PickledTensor(NamedTuple):
    """Description of a tensor, which `SavedFile.tensor` reads from the file."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> PickledTensor:
    is_plain = isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not is_plain or not len(size) == len(stride) <= MAX_AXES:
        raise RestrictedPickleError("a tensor in it is described in an unknown way")
    is_possible = all(type(number) is int and 0 <= number < 2**62 for number in (offset, *size, *stride))
    if not is_possible or math.prod(max(length, 1) for length in size) >= 2**62:
        raise RestrictedPickleError("a tensor in it has an impossible shape")
    return PickledTensor(storage, offset, size, stride)


def _parameter(data: PickledTensor, *_: object) -> PickledTensor:
    return data


def _ordered_dict() -> dict[object, object]:
    return {}


REBUILD: dict[Name, Callable[..., object]] = {
    Name("collections", "OrderedDict"): _ordered_dict,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}
"""The only functions that a file can call: pure functions of this module in place of those it names."""


class SavedFile:
    """A file of ``torch.save``. ``content`` is the saved value, with `Inert` in place of objects.

    Use it in a ``with`` statement, because an open file cannot be deleted under Windows. Read tensors inside it.
    """

    def __init__(self, path: Path) -> None:
        """Open and interpret the file.

        Raises:
            RestrictedPickleError: If ``torch.save`` did not write the file, or it is damaged.
            OSError: If the file cannot be read.
        """
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile:
            raise RestrictedPickleError(
                "is not a file of torch.save's present format (since PyTorch 1.6), or is cut off: save it again"
            ) from None
        try:
            names = [name for name in self._zip.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(names) != 1:
                raise RestrictedPickleError("is a zip file, but not one of torch.save's: it has no data.pkl")
            self._folder = names[0].removesuffix("data.pkl")
            if f"{self._folder}byteorder" in self._zip.namelist() and self._record("byteorder") != b"little":
                raise RestrictedPickleError("was saved on a big-endian machine: save it again on another")
            self._storages: dict[Storage, Tensor] = {}
            self._budget_bytes = 2 * Path(path).stat().st_size  # for all tensors; many may share a storage
            self.content = interpret(self._record("data.pkl"))
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> SavedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def tensor(self, pickled: PickledTensor) -> Tensor:
        """Read a tensor onto the CPU, contiguous, into new memory.

        Raises:
            RestrictedPickleError: If it reaches beyond its storage, the storage is not complete, or the file's tensors
                take more than twice the size of the file.
        """
        storage, offset, size, stride = pickled
        if 0 in size:
            return torch.empty(size, dtype=storage.dtype)
        if storage not in self._storages:
            content = self._record(f"data/{storage.key}")
            if not content or len(content) != storage.num_elements * storage.dtype.itemsize:
                raise RestrictedPickleError("a tensor in it is not complete")
            self._storages[storage] = torch.frombuffer(bytearray(content), dtype=storage.dtype)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if max(math.prod(size), last + 1) > storage.num_elements:
            raise RestrictedPickleError("a tensor in it reaches beyond its storage")
        self._budget_bytes -= math.prod(size) * storage.dtype.itemsize
        if self._budget_bytes < 0:
            raise RestrictedPickleError("holds many times the tensors that fit into a file of its size")
        return self._storages[storage].as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)

    def _record(self, name: str) -> bytes:
        try:
            info = self._zip.getinfo(self._folder + name)
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise RestrictedPickleError("has compressed or encrypted records, which torch.save never makes")
            return self._zip.read(info)
        except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise RestrictedPickleError(f"is damaged (record {name}): get it again") from error


def interpret(program: bytes) -> object:
    """Return the value of a pickle as plain values, `Name`, `Inert` and `PickledTensor`, without running it.

    Raises:
        RestrictedPickleError: If the program is not a pickle, is cut off, or has an instruction that ``torch.save``
            does not use.
    """
    try:
        machine = _Machine()
        for instruction, argument, _ in pickletools.genops(program):
            machine.execute(instruction.name, argument)
        return machine.result
    except RestrictedPickleError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise RestrictedPickleError(f"is damaged or no pickle ({type(error).__name__})") from error


PLAIN = {  # instructions that put their argument on the stack
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
HASHABLE = (str, int, float, bytes, type(None))  # other keys are dropped: hashing a deep tuple can crash


class _Machine:
    """Stack, marks and memo of a pickle, with a method for each other instruction."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.result: object = None

    def execute(self, name: str, argument: object) -> None:
        """Carry out one instruction."""
        if name in PLAIN:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in SHORT_TUPLES:
            self.stack.append(tuple(self.take(SHORT_TUPLES[name])))
        elif (method := getattr(self, f"do_{name.lower()}", None)) is not None:
            method(argument)
        else:
            raise RestrictedPickleError(f"uses the pickle instruction {name}, which torch.save does not")

    def take(self, count: int) -> list[object]:
        """Remove the last ``count`` values, in order."""
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise IndexError("stack")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def take_marked(self) -> list[object]:
        """Remove the values above the last mark, in order."""
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def do_proto(self, _: int) -> None:
        pass

    do_frame = do_proto

    def do_stop(self, _: None) -> None:
        (self.result,) = self.take(1)

    def do_mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def do_pop(self, _: None) -> None:
        self.take(1)

    def do_pop_mark(self, _: None) -> None:
        self.take_marked()

    def do_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    def do_tuple(self, _: None) -> None:
        self.stack.append(tuple(self.take_marked()))

    def do_setitem(self, _: None) -> None:
        self.set_items(self.take(2))

    def do_setitems(self, _: None) -> None:
        self.set_items(self.take_marked())

    def set_items(self, values: list[object]) -> None:
        """Add alternating keys and values to the dict or object on top of the stack."""
        target = self.stack[-1]
        items = target.items if isinstance(target, Inert) else target
        if not isinstance(items, dict):
            raise TypeError("items")
        both = zip(values[::2], values[1::2], strict=True)
        items.update((key, value) for key, value in both if isinstance(key, HASHABLE))

    def do_append(self, _: None) -> None:
        self.append(self.take(1))

    def do_appends(self, _: None) -> None:
        self.append(self.take_marked())

    def append(self, values: list[object]) -> None:
        """Append values to the list or object on top of the stack."""
        target = self.stack[-1]
        elements = target.elements if isinstance(target, Inert) else target
        if not isinstance(elements, list):
            raise TypeError("elements")
        elements.extend(values)

    def do_additems(self, _: None) -> None:
        values = self.take_marked()
        if not isinstance(self.stack[-1], set):
            raise TypeError("set")
        self.stack[-1].update(value for value in values if isinstance(value, HASHABLE))

    def do_global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self.stack.append(Name(module, name))

    def do_stack_global(self, _: None) -> None:
        module, name = self.take(2)
        if type(module) is not str or type(name) is not str:
            raise TypeError("name")
        self.stack.append(Name(module, name))

    def do_reduce(self, _: None) -> None:
        called, args = self.take(2)
        rebuild = REBUILD.get(called) if isinstance(called, Name) else None
        if rebuild is None:
            self.stack.append(Inert(called, args))
        elif isinstance(args, tuple):
            self.stack.append(rebuild(*args))
        else:
            raise TypeError("arguments")

    def do_newobj(self, _: None) -> None:
        called, args = self.take(2)
        self.stack.append(Inert(called, args))

    def do_newobj_ex(self, _: None) -> None:
        called, args = self.take(3)[:2]
        self.stack.append(Inert(called, args))

    def do_build(self, _: None) -> None:
        """Store the state of an object; drop the state of a plain value, such as the metadata of an OrderedDict."""
        (state,) = self.take(1)
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def do_binpersid(self, _: None) -> None:
        match self.take(1)[0]:
            case ("storage", Name("torch", name), str(key), _, int(num_elements)) if type(num_elements) is int:
                if name not in STORAGE_DTYPES:
                    raise RestrictedPickleError(f"holds numbers of a kind that is not read here: {name}")
                self.stack.append(Storage(STORAGE_DTYPES[name], key, num_elements))
            case _:
                raise RestrictedPickleError("refers to something that is not in the file")
