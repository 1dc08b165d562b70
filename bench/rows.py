"""A row of the table: the figure, the reference from the same run, and whether the target is reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

HEADINGS = ("what", "figure", "reference", "ratio", "target", "reached")


class Target(NamedTuple):
    """A bound on a row's figure or on its ratio to the reference."""

    of: Literal["figure", "ratio"]
    sense: Literal["under", "at least"]
    bound: float


@dataclass(frozen=True)
class Row:
    """One measured figure; `reference` has the same unit and was measured in the same run."""

    what: str
    figure: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    note: str = ""
    """Additional text, such as the spread."""
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        return self.figure / self.reference if self.reference else None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; none without a target."""
        if self.target is None:
            return None
        value = self.figure if self.target.of == "figure" else self.ratio
        if value is None or not math.isfinite(value):
            return False
        return value < self.target.bound if self.target.sense == "under" else value >= self.target.bound

    def cells(self) -> tuple[str, ...]:
        """The row as text, one cell per heading."""
        figure = quantity(self.figure, self.unit) + (f" ({self.note})" if self.note else "")
        reference = f"{quantity(self.reference, self.unit)} {self.reference_name}" if self.reference else ""
        ratio = f"{self.ratio:.2f}" if self.ratio is not None else ""
        return (self.what, figure, reference, ratio, self._bound(), {None: "", True: "yes", False: "NO"}[self.reached])

    def _bound(self) -> str:
        if self.target is None:
            return ""
        of, sense, bound = self.target
        return f"{sense} {quantity(bound, self.unit)}" if of == "figure" else f"ratio {sense} {bound:g}"


def quantity(value: float, unit: str) -> str:
    """A value with three significant digits, or all of its digits before the point."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
    return f"{text} {unit}"


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
