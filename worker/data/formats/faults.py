"""Limits on files of data, and errors in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from worker.errors import UserError
from worker.limits import Subject, memory_limit

MAX_BYTES = 8 * 2**30
"""Most bytes of one unpacked file, and of its samples in memory."""
FREE_BYTES = 256 * 2**20
"""Bytes that the samples of any file may take, however small."""
TABLE_RATIO, LARGEST_RATIO = 100, 1000
"""Times its size that a file's tables, and a file's images, may take beyond that: DEFLATE reaches as much on images."""
COPIES = 3
"""Copies of the samples in memory while they are read: as stored, as values, and as tensors."""


def most_bytes(path: Path, ratio: int = LARGEST_RATIO) -> int:
    """Bytes that the samples of this file may take."""
    return min(MAX_BYTES, FREE_BYTES + ratio * path.stat().st_size)


def most_text(path: Path) -> int:
    """Most characters of all texts of this file, if they are read some at a time."""
    return FREE_BYTES + TABLE_RATIO * path.stat().st_size


def data_subject(param: str) -> Subject:
    """The file that this field names, for the limits on reading."""
    return Subject(param, "invalid_data", param)


def data_memory(path: Path) -> int:
    """Memory limit in bytes for reading this file."""
    return memory_limit(most_bytes(path), COPIES)


def invalid(message: str, param: str) -> UserError:
    """The error for invalid data; `param` is the field that names the file, or a part of it."""
    return UserError("invalid_data", message, param)


def listed(values: Sequence[object], most: int = 20) -> str:
    """The first values, and the number of further ones."""
    more = f" … and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(shown, values[:most])) + more


def shown(value: object) -> str:
    """An untrusted value as text that is safe in a message, truncated to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
