"""Words for outputs that stand in other places than the targets they belong to."""

from __future__ import annotations

from collections.abc import Callable

from worker.metrics.permutation import Moved

LISTED = 20
"""Pairs that a sentence names."""


def listed_moves(moved: Moved, name: Callable[[int], str]) -> str:
    """Which places are answered with which others, as `name` calls them."""
    pairs = [f"{name(own)} is answered with {name(other)}" for own, other in sorted(moved.items())]
    return ", ".join(pairs[:LISTED]) + (f" and {len(pairs) - LISTED} more" if len(pairs) > LISTED else "")
