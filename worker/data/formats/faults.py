"""What is said of data that can't be used."""

from __future__ import annotations

from worker.errors import UserError

MAX_BYTES = 8 * 2**30
"""Most that one file may unpack to, and most that its samples may take in memory."""


def invalid(message: str, param: str) -> UserError:
    """The data is at fault; `param` is the field that names the file, or the part of it."""
    return UserError("invalid_data", message, param)


def shown(value: object) -> str:
    """A stranger's value as text that is safe to repeat, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
