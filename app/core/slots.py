"""Limits of the concurrent work of one API key, so that no key can block the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.core.errors import TooMany


class Slots:
    """A limit per key for one kind of work; `what` names it in the error."""

    def __init__(self, per_key: int, code: str, what: str) -> None:
        self._per_key, self._code, self._what = per_key, code, what
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, key_id: str) -> Iterator[None]:
        """Hold a slot within the context. Raises `TooMany`."""
        if self._taken[key_id] >= self._per_key:
            raise TooMany(self._code, f"one key may have {self._per_key} {self._what} at a time", 1)
        self._taken[key_id] += 1
        try:
            yield
        finally:
            self._taken[key_id] -= 1
            if not self._taken[key_id]:
                del self._taken[key_id]
