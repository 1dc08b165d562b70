"""Pictures of panels side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL, DPI = (3.0, 3.2), 100
"""Width and height of a panel, in inches."""
LEFT, BOTTOM, RIGHT, TOP = 0.55, 0.45, 0.1, 0.3
"""Margins of a panel, in inches."""
Drawn = TypeVar("Drawn")


def draw_panels(panels: Mapping[str, Drawn], draw: Callable[[Axes, str, Drawn], None], path: Path) -> None:
    """Write a PNG with a panel for each name, which `draw` fills."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a third of a second that training need not wait for
    from matplotlib.figure import Figure

    width, height = PANEL[0] * len(panels), PANEL[1]
    figure = Figure((width, height), DPI)
    for place, (name, drawn) in enumerate(panels.items()):
        left = PANEL[0] * place + LEFT
        size = (PANEL[0] - LEFT - RIGHT) / width, (PANEL[1] - BOTTOM - TOP) / height
        draw(figure.add_axes((left / width, BOTTOM / height, *size)), name, drawn)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and labels of a panel."""
    axes.set_title(title, fontsize=10, y=1.0)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
