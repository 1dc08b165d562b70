"""Warnings about class names: names that differ only in their form, and names mixed with numbers."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

from app.recipe.data.classes import fold
from worker.data.formats.columns import is_whole
from worker.data.formats.faults import shown

MOST = 5
"""Most names in a warning."""


def odd_names(names: Sequence[str]) -> Iterator[str]:
    """Warnings about the names of a job's classes, each with examples."""
    if blank := [name for name in names if not name.strip()]:
        yield f"a class has the name {shown(blank[0])}, which has only spaces"
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[fold(" ".join(unicodedata.normalize("NFKC", name).split()))].append(name)
    for same in alike.values():
        if len(same) > 1:
            how = "capitals, spaces, leading zeros or how characters are encoded"
            yield f"the classes {_listed(same)} differ only in {how}"
    numbers = [name for name in names if is_whole(name)]
    if numbers and len(numbers) < len(names):
        others = [name for name in names if not is_whole(name)]
        yield f"labels are read as names, also {_listed(numbers)}: {_listed(others)} are no numbers of classes"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_ascii, names[:MOST])) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")


def _ascii(name: str) -> str:
    """A name in ASCII, so that similar characters can be distinguished, truncated as `shown` does."""
    text = ascii(name)
    return text if len(text) <= 60 else f"{text[:57]}..."
