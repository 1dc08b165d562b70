"""Reads untrusted tar and zip archives, file by file, without unpacking anything to disk.

Unsafe paths, links, devices and encrypted members are refused. Declared sizes are limited before a byte is read, and
actual sizes while reading: a tar is only read forwards, through a counter.
"""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from worker.data.formats.faults import MAX_BYTES, invalid, shown
from worker.errors import UserError
from worker.limits import progress

MAX_MEMBERS = 2_000_000
FREE_BYTES = 64 * 2**20
"""Size below which any compression ratio is accepted."""
MAX_RATIO = 100
CHUNK = 2**20
STEP = 64 * 2**20
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    OSError,
)


class Member(NamedTuple):
    """One file of an archive."""

    path: PurePosixPath
    content: bytes


def members(path: Path, largest: int, param: str) -> Iterator[Member]:
    """The files of the archive in its order, without folders; none may have more than `largest` bytes.

    Raises UserError (`invalid_data` at `param`).
    """
    with _sound(param):
        if zipfile.is_zipfile(path):
            yield from _of_zip(path, largest, param)
        else:
            yield from _of_tar(path, largest, param)


@contextmanager
def _sound(param: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _BROKEN as error:
        raise invalid(f"{param} is not a valid tar, tar.gz or zip archive", param) from error


class _Budget:
    """Counts files and bytes of an archive against the limits."""

    def __init__(self, largest: int, param: str) -> None:
        self._largest, self._param = largest, param
        self._members = self._bytes = 0
        self._seen: set[str] = set()

    def spend(self, name: str, size: int) -> PurePosixPath:
        """Count a member and return its path. Raises UserError if it may not be read."""
        self._members += 1
        self._bytes += size
        if self._members > MAX_MEMBERS:
            raise invalid(f"{self._param} has more than {MAX_MEMBERS} files", self._param)
        if size > self._largest:
            message = f"{shown(name)} in {self._param} has {size} bytes; accepted: up to {self._largest}"
            raise invalid(message, self._param)
        if self._bytes > MAX_BYTES:
            raise invalid(f"{self._param} unpacks to more than {MAX_BYTES} bytes", self._param)
        if name in self._seen:
            raise invalid(f"{self._param} has {shown(name)} twice", self._param)
        self._seen.add(name)
        return _safe_path(name, self._param)


def _safe_path(name: str, param: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise invalid(f"{param} has a file with the unsafe name {shown(name)}", param)
    return path


def _of_zip(path: Path, largest: int, param: str) -> Iterator[Member]:
    budget = _Budget(largest, param)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            _refuse_zip_member(info, param)
            place = budget.spend(info.filename, info.file_size)
            with archive.open(info) as file:
                yield Member(place, _whole(file))


def _refuse_zip_member(info: zipfile.ZipInfo, param: str) -> None:
    name, mode = shown(info.filename), info.external_attr >> 16
    if info.flag_bits & 0x1:
        raise invalid(f"{name} in {param} is encrypted", param)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise invalid(f"{name} in {param} is a link or a device; accepted: files and folders", param)
    if info.file_size > FREE_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        raise invalid(f"{name} in {param} unpacks to more than {MAX_RATIO} times its packed size", param)


def _of_tar(path: Path, largest: int, param: str) -> Iterator[Member]:
    budget = _Budget(largest, param)
    with _unpacked(path) as stream:
        source = _Forward(stream, largest, param)
        with tarfile.open(fileobj=source, mode="r:") as archive:  # type: ignore[call-overload]  # has read, tell and seek
            for info in archive:
                archive.members = []  # it would store them all
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    name = shown(info.name)
                    raise invalid(f"{name} in {param} is a link or a device; accepted: files and folders", param)
                place = budget.spend(info.name, info.size)
                yield Member(place, _content(archive, info))


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    content = _whole(file) if file is not None else b""
    if len(content) != info.size:
        raise tarfile.ReadError("truncated")
    return content


def _whole(file: IO[bytes]) -> bytes:
    """The whole content, in steps that each report progress."""
    steps = []
    while step := file.read(STEP):
        progress()
        steps.append(step)
    return steps[0] if len(steps) == 1 else b"".join(steps)


def _unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


class _Forward:
    """Stream for `tarfile` that is read forwards only, in small steps, up to a limit."""

    def __init__(self, stream: IO[bytes], largest: int, param: str) -> None:
        self._stream, self._largest, self._param = stream, largest + CHUNK, param
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("its members are out of order")
        while self._position < position and self.read(min(CHUNK, position - self._position)):
            pass

    def read(self, size: int) -> bytes:
        if size > self._largest:
            raise tarfile.ReadError(f"a header of {size} bytes")
        content = self._stream.read(size)
        progress()
        self._position += len(content)
        if self._position > 2 * MAX_BYTES:  # twice: headers and padding are not counted per member
            raise invalid(f"{self._param} unpacks to more than {MAX_BYTES} bytes", self._param)
        return content
