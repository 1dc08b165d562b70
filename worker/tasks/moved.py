"""Describes outputs whose order differs from that of the targets."""

from __future__ import annotations

from collections.abc import Callable

from worker.metrics.permutation import Moved

LISTED = 20
"""Most pairs listed in a sentence."""


def listed_moves(moved: Moved, name: Callable[[int], str]) -> str:
    """A list of the places and the places predicted instead; `name` returns the name of each."""
    pairs = [f"{name(place)} is predicted as {name(other)}" for place, other in sorted(moved.items())]
    return ", ".join(pairs[:LISTED]) + (f" and {len(pairs) - LISTED} more" if len(pairs) > LISTED else "")
