"""Keeps a `ScanTable` in one binary file and maps it into memory, so that a start need not parse labels again.

Layout: ``MAGIC``, length and CRC-32 of the header (uint64 each), the header (JSON: version, key, lengths and CRC-32 of
the columns, rejected rows, sources), then the columns of `ARRAYS`, each at a multiple of 64 bytes. The file holds plain
numbers: nothing in it is executed or unpickled.

Processes that map the file share its pages, and the system can take them back when memory is short.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np

from data.errors import DataError
from data.indexing.scan_table import ARRAYS, OFFSETS, Origin, Reject, ScanTable, Source
from data.replacing import replacing

MAGIC = b"YOLOFITX"
VERSION = 3  # raise it when the layout changes, or what is read from images and labels
ALIGNMENT = 64


class IndexFileError(Exception):
    """The file is missing, damaged, or of another version or data set, and must be made again."""


def index_file_path(cache_folder: Path, yaml_file: Path, split: str) -> Path:
    """Path of the index of a split: one file per data set and split."""
    digest = hashlib.sha256(os.fsencode(yaml_file)).hexdigest()[:12]
    return cache_folder / f"index-{yaml_file.parent.name[:40]}-{split}-{digest}.bin"


def save_table(file: Path, table: ScanTable, key: str) -> None:
    """Write a table; the file appears when it is complete, and missing parents are made.

    ``key`` names everything that the table depends on besides the files, such as the names of the classes.

    Raises:
        OSError: If it cannot be written.
    """
    arrays = {name: np.ascontiguousarray(getattr(table, name)) for name in ARRAYS}
    header = {
        "version": VERSION,
        "key": key,
        "crc32": _checksum(arrays),
        "lengths": {name: len(array) for name, array in arrays.items()},
        "rejects": {str(row): list(reject) for row, reject in table.rejects.items()},
        "sources": [list(source) for source in table.sources],
    }
    encoded = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, f"-{uuid4().hex}") as stream:
        stream.write(MAGIC + len(encoded).to_bytes(8, "little") + zlib.crc32(encoded).to_bytes(8, "little"))
        stream.write(encoded)
        for array in arrays.values():
            stream.write(bytes(-stream.tell() % ALIGNMENT))
            stream.write(array.data)


def load_table(file: Path, key: str) -> ScanTable:
    """Map a table of `save_table` into memory, as read-only arrays, after a check of its key and checksums.

    Raises:
        IndexFileError: If the file must be made again; says why.
    """
    try:
        with file.open("rb") as stream:
            header, start = _read_header(stream)
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise IndexFileError(f"{file}: {error}") from None
    if header.get("version") != VERSION or header.get("key") != key:
        raise IndexFileError(f"{file}: made for another version or data set")
    try:
        arrays = _map_arrays(content, start, header["lengths"])
        intact = header["crc32"] == _checksum(arrays)
        table = ScanTable(
            **arrays,
            rejects={int(row): Reject(*reject) for row, reject in header["rejects"].items()},
            sources=tuple(Source(path, tuple(stamp), count) for path, stamp, count in header["sources"]),
            origin=Origin(file, key, header["crc32"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # cut off, or not what save_table writes
        raise IndexFileError(f"{file}: damaged ({error})") from None
    if not intact or not _is_consistent(table):
        raise IndexFileError(f"{file}: damaged (its checksum differs)")
    return table


def reload_table(origin: Origin) -> ScanTable:
    """Map the table that another process has mapped.

    Raises:
        DataError: If the file was replaced in the meantime.
    """
    try:
        table = load_table(origin.file, origin.key)
    except IndexFileError as error:
        raise DataError(f"{error} since this run started. Start the run again.") from None
    if table.origin != origin:
        raise DataError(f"{origin.file}: another run has made the file again. Start this run again.")
    return table


def _read_header(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    magic, size, checksum = stream.read(8), stream.read(8), stream.read(8)
    num_bytes = int.from_bytes(size, "little")
    if magic != MAGIC or num_bytes > os.fstat(stream.fileno()).st_size:
        raise ValueError("damaged, or not an index file")
    encoded = stream.read(num_bytes)
    if zlib.crc32(encoded) != int.from_bytes(checksum, "little"):
        raise ValueError("damaged (the checksum of its header differs)")
    return json.loads(encoded), stream.tell()


def _map_arrays(content: mmap.mmap, start: int, lengths: dict[str, int]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, (dtype, shape) in ARRAYS.items():
        start += -start % ALIGNMENT
        count = lengths[name] * int(np.prod(shape))
        array = np.frombuffer(content, dtype, count, start) if count else np.empty(0, dtype)
        arrays[name] = array.reshape(-1, *shape)
        start += array.nbytes
    if start != len(content):
        raise ValueError("its length differs")
    return arrays


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    checksum = 0
    for array in arrays.values():
        checksum = zlib.crc32(array.data, checksum) if array.size else checksum
    return checksum


def _is_consistent(table: ScanTable) -> bool:
    """Whether the lengths of the columns agree."""
    rows = len(table)
    ends = (table.path_offsets[-1] == len(table.path_bytes), table.box_offsets[-1] == len(table.classes))
    same = all(len(getattr(table, name)) == rows + (name in OFFSETS) for name in ARRAYS if name not in _OF_ENTRIES)
    return all(ends) and same and len(table.boxes_xyxy_rel) == len(table.classes)


_OF_ENTRIES = ("path_bytes", "boxes_xyxy_rel", "classes")
