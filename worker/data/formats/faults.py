"""What is said of data that can't be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from worker.errors import UserError
from worker.limits import Subject, room_for

MAX_BYTES = 8 * 2**30
"""Most that one file may unpack to, and most that its samples may take in memory."""
FREE_BYTES = 256 * 2**20
"""What the samples of any file may take, however small it is."""
TABLE_RATIO, LARGEST_RATIO = 100, 1000
"""Times its size that a file's tables, and a file's images, may take beyond that: of images DEFLATE reaches as much."""
COPIES = 3
"""Times that samples may lie in memory while they are read: as stored, as values, and as what training takes."""


def most_bytes(path: Path, ratio: int = LARGEST_RATIO) -> int:
    """Bytes that the samples of this file may take."""
    return min(MAX_BYTES, FREE_BYTES + ratio * path.stat().st_size)


def most_text(path: Path) -> int:
    """Characters of all texts of this file, where they are read some at a time."""
    return FREE_BYTES + TABLE_RATIO * path.stat().st_size


def data_subject(param: str) -> Subject:
    """The file that this field names, as what is read."""
    return Subject(param, "invalid_data", param)


def data_room(path: Path) -> int:
    """Bytes of memory that reading this file may take."""
    return room_for(most_bytes(path), COPIES)


def invalid(message: str, param: str) -> UserError:
    """The data is at fault; `param` is the field that names the file, or the part of it."""
    return UserError("invalid_data", message, param)


def listed(values: Sequence[object], most: int = 20) -> str:
    """The first of some values, and how many there are besides."""
    more = f" … and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(shown, values[:most])) + more


def shown(value: object) -> str:
    """A stranger's value as text that is safe to repeat, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
