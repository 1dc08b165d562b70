"""Result of a job as text: its metric beside its teacher's and beside the same student's without a teacher."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stillhouse import Figures, Result

LISTED_FILES = 12


def in_short(found: Figures) -> str:
    """One line for a list."""
    if found.metric is None or found.value is None:
        return ""
    beside = f" (teacher {_number(_best(found))}, {_signed(found.difference)})" if found.difference is not None else ""
    return f"{found.metric} {_number(found.value)}{beside}"


def in_full(found: Result) -> RenderableType:
    """The metric, its comparisons, warnings, and the names of the files."""
    grid = Table.grid(padding=(0, 2))
    for name, value, difference in _rows(found):
        grid.add_row(Text(name, style="dim"), value, difference)
    parts: list[RenderableType] = [grid]
    parts += [Text.assemble(("Warning: ", "yellow"), warning.message) for warning in found.warnings]
    if found.model_id:
        parts.append(Text.assemble(("model  ", "dim"), found.model_id))
    names = [item.name for item in found.artifacts]
    more = f" and {len(names) - LISTED_FILES} more" if len(names) > LISTED_FILES else ""
    if names:
        parts.append(Text.assemble(("files  ", "dim"), ", ".join(names[:LISTED_FILES]) + more))
    return Group(*parts)


def _rows(found: Result) -> list[tuple[str, str, str]]:
    if found.metric is None or found.value is None:
        return []
    rows = [(f"{found.metric} of the student", _number(found.value), "")]
    for name, value in found.teachers.items():
        called = "its teacher" if len(found.teachers) == 1 else f"teacher {name}"
        rows.append((f"of {called}", _number(value), _compared(found, found.value - value, "the student is")))
    if found.alone is not None:
        alone = f"of the same student without a teacher ({found.alone.name or found.alone.job_id})"
        comparison = _compared(found, found.alone.difference, "with its teacher the student is")
        rows.append((alone, _number(found.alone.value), comparison))
    return rows


def _compared(found: Figures, difference: float, subject: str) -> str:
    if difference == 0:
        return f"{subject} equally good"
    better = (difference > 0) == found.higher_is_better
    return f"{subject} {_number(abs(difference))} {'better' if better else 'worse'}"


def _best(found: Figures) -> float:
    return (max if found.higher_is_better else min)(found.teachers.values())


def _number(value: float) -> str:
    return f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4g}"
