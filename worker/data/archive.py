"""Reads untrusted NumPy archives (`.npz`).

An archive is a zip file of arrays. Its headers are checked before they are used: pickled objects are refused, declared
and actual sizes are limited, and nothing is unpacked to disk.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from app.recipe.data.facts import Archive, ArrayFacts
from worker.errors import UserError

MAX_ARRAY_BYTES = 8 * 2**30
MAX_ARRAYS = 1024
FREE_BYTES = 64 * 2**20
"""Size below which any compression ratio is accepted."""
MAX_RATIO = 100
"""DEFLATE can reach 1032; real images stay below 20."""
CHUNK = 2**20

NDArray = np.ndarray[Any, np.dtype[Any]]


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_headers(path: Path, param: str) -> Archive:
    """Shape and dtype of every array of the archive, without reading any data.

    Raises UserError (`invalid_data` at `param`) unless the file is a valid archive of plain arrays.
    """
    with _opened(path, param) as archive:
        headers = {}
        for info in _members(archive, param):
            with archive.open(info) as stream:
                headers[_array_name(info)] = _facts(_read_header(stream, info, param))
        return headers


def read_array(path: Path, name: str, param: str) -> NDArray:
    """The array `name`, of the shape and dtype of its header, in C order and native byte order; raises as
    `read_headers` does."""
    with _opened(path, param) as archive:
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as stream:
            return _read_data(stream, _read_header(stream, info, param), name, param)


@contextmanager
def _opened(path: Path, param: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _invalid(f"{param} is not a valid NumPy archive (.npz)", param) from error


def _members(archive: zipfile.ZipFile, param: str) -> list[zipfile.ZipInfo]:
    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if len(archive.infolist()) > MAX_ARRAYS:
        raise _invalid(f"{param} has more than {MAX_ARRAYS} entries", param)
    for info in members:
        _refuse_bomb(info, param)
    return members


def _refuse_bomb(info: zipfile.ZipInfo, param: str) -> None:
    name = _array_name(info)
    if info.file_size > MAX_ARRAY_BYTES:
        raise _invalid(f"array {name!r} of {param} takes more than {MAX_ARRAY_BYTES} bytes", param)
    if info.file_size > FREE_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        raise _invalid(f"array {name!r} of {param} unpacks to more than {MAX_RATIO} times its packed size", param)


def _read_header(stream: IO[bytes], info: zipfile.ZipInfo, param: str) -> _Header:
    name = _array_name(info)
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise _invalid(f"array {name!r} of {param} has an unknown format version {version}", param)
    header = _Header(*read(stream))
    if header.dtype.hasobject:
        raise _invalid(f"array {name!r} of {param} has Python objects, which are never loaded", param)
    if header.bytes > info.file_size:
        raise _invalid(f"array {name!r} of {param} declares {header.bytes} bytes and has {info.file_size}", param)
    return header


def _read_data(stream: IO[bytes], header: _Header, name: str, param: str) -> NDArray:
    data = bytearray()
    while len(data) < header.bytes:
        chunk = stream.read(min(CHUNK, header.bytes - len(data)))
        if not chunk:
            raise _invalid(f"array {name!r} of {param} is truncated: {len(data)} of {header.bytes} bytes", param)
        data += chunk
    if stream.read(1):  # also makes zipfile compare the checksum
        raise _invalid(f"array {name!r} of {param} has more bytes than its shape {header.shape} needs", param)
    array: NDArray = np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")
    return np.ascontiguousarray(array, header.dtype.newbyteorder("="))


def _facts(header: _Header) -> ArrayFacts:
    return ArrayFacts(shape=header.shape, dtype=header.dtype.str[1:])


def _array_name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _invalid(message: str, param: str) -> UserError:
    return UserError("invalid_data", message, param)
