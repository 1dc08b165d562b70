"""Limits of what one API key may have under way at a time, so that no key can keep all others waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.core.errors import TooMany


class Slots:
    """So many per key, of one kind of work; `what` names it in the refusal."""

    def __init__(self, per_key: int, code: str, what: str) -> None:
        self._per_key, self._code, self._what = per_key, code, what
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, key_id: str) -> Iterator[None]:
        """Hold one for as long as the frame lasts. Raises `TooMany`."""
        if self._taken[key_id] >= self._per_key:
            raise TooMany(self._code, f"one key may have {self._per_key} {self._what} at a time", 1)
        self._taken[key_id] += 1
        try:
            yield
        finally:
            self._taken[key_id] -= 1
            if not self._taken[key_id]:
                del self._taken[key_id]
