"""Plots the metrics of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from worker.training.history import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS = "train/loss"
COLUMNS = 3
PANEL = (4.0, 2.6)
"""Width and height of a panel, in inches."""
LEFT, BOTTOM, RIGHT, TOP = 0.72, 0.45, 0.1, 0.3
"""Margins of a panel for labels and title, in inches: fixed, because a layout that measures all text takes as long as
drawing it."""
TICKS = 5
DPI = 100
Series = tuple[list[int], list[float]]


def draw_curves(points: Sequence[Point], path: Path, best_step: int | None = None) -> None:
    """Write a PNG. Values that share the first two parts of their names share a panel; `best_step` is marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a third of a second that training need not wait for
    from matplotlib.figure import Figure

    panels = _panels(points)
    rows = max(1, -(-len(panels) // COLUMNS))
    figure = Figure((PANEL[0] * COLUMNS, PANEL[1] * rows), DPI)
    for place, (title, names) in enumerate(panels.items()):
        axes = figure.add_axes(_within(rows, *divmod(place, COLUMNS)))
        _draw(axes, title, {name: _series(points, name) for name in names}, best_step)
    canvas = FigureCanvasAgg(figure)  # needs no display; `savefig` would draw everything twice
    canvas.print_png(path)  # type: ignore[no-untyped-call]


def _within(rows: int, row: int, column: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a panel's axes, as fractions of the figure."""
    width, height = PANEL[0] * COLUMNS, PANEL[1] * rows
    left, bottom = PANEL[0] * column + LEFT, PANEL[1] * (rows - 1 - row) + BOTTOM
    return left / width, bottom / height, (PANEL[0] - LEFT - RIGHT) / width, (PANEL[1] - BOTTOM - TOP) / height


def _panels(points: Sequence[Point]) -> dict[str, list[str]]:
    """Names of the values in each panel, by its title."""
    panels: dict[str, list[str]] = {LOSS: []}
    for name in dict.fromkeys(name for point in points for name in point.values):
        panels.setdefault("/".join(name.split("/")[:2]), []).append(name)
    return {title: names for title, names in panels.items() if names}


def _series(points: Sequence[Point], name: str) -> Series:
    chosen = [point for point in points if name in point.values]
    return [point.step for point in chosen], [point.values[name] for point in chosen]


def _draw(axes: Axes, title: str, lines: dict[str, Series], best_step: int | None) -> None:
    for name, (steps, values) in lines.items():
        axes.plot(steps, values, label=name.removeprefix(f"{title}/"), marker="." if len(steps) < 30 else None)
    if best_step is not None and title.startswith("eval/"):
        axes.axvline(best_step, color="0.6", linestyle=":", linewidth=1)
    axes.set_title(title, fontsize=10, y=1.0)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=TICKS)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=8)
