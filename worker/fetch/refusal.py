"""The error for a model that can't be fetched, and the choice of its files."""

from __future__ import annotations

from collections.abc import Mapping

from app.recipe.students.hugging_face import chosen


class Refused(Exception):
    """The source has no usable model; the text is the reason, for the job's owner."""


def choose(sizes: Mapping[str, int], max_bytes: int) -> list[str]:
    """The files to fetch, of a folder with files of these sizes; raises `Refused`."""
    try:
        names = chosen(sizes)
    except ValueError as error:
        raise Refused(str(error)) from error
    if (total := sum(sizes[name] for name in names)) > max_bytes:
        raise Refused(f"it has {total} bytes; accepted: at most {max_bytes}")
    return names
