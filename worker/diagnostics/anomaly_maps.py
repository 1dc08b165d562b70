"""Pictures of anomaly maps over held-out images.

N images, S the side of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from app.recipe.diagnostics import AnomalyMaps
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult
from worker.tasks.anomaly_detection import is_anomalous, maps_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, PANEL, DPI = 4, 1.8, 100
"""Panels in a row, the side of one in inches, and dots per inch."""
TITLE = 0.12
"""Share of a panel's height for its title."""
OPACITY = 0.5


class Shown(NamedTuple):
    """One image of the picture."""

    number: int
    """Its number among the held-out images."""
    pixels: Tensor
    """(C, H, W) of any numeric dtype."""
    map: Tensor
    """(S, S) float32."""
    score: float
    anomalous: bool
    mask: Tensor | None
    """(H, W), not 0 at anomalous pixels; none: there are no masks."""


class AnomalyMapsAnalysis:
    """Figures of the normal and of the anomalous images: how many, and quantiles of their scores."""

    def __init__(self, spec: AnomalyMaps) -> None:
        self._spec = spec

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        samples, outputs = inputs.judged.samples, inputs.predict(inputs.judged.samples)
        targets, scores = samples.targets.cpu(), outputs[:, 0]
        anomalous = is_anomalous(targets)
        halves = {"anomalous": anomalous, "normal": ~anomalous}
        chosen = [
            number for half in halves.values() for number in _at_equal_distances(scores, half, self._spec.images // 2)
        ]
        assert inputs.student is not None  # given wherever a job runs diagnostics
        images, maps = samples.inputs[inputs.student.input_key], maps_of(outputs)
        shown = [
            Shown(
                number,
                images[number].cpu(),
                maps[number],
                float(scores[number]),
                bool(anomalous[number]),
                targets[number] if targets.ndim == 3 else None,
            )
            for number in chosen
        ]
        figures = {name: _quantiles(scores[half]) for name, half in halves.items() if bool(half.any())}
        rows = [{"image": one.number, "anomalous": one.anomalous, "score": one.score} for one in shown]
        return DiagnosticResult(figures, rows, lambda path: draw_maps(shown, path))


def _at_equal_distances(scores: Tensor, wanted: Tensor, most: int) -> list[int]:
    """Numbers of at most `most` of the `wanted` images (N,) bool: in the order of their scores (N,) float32, from the
    highest to the lowest, at equal distances."""
    numbers = wanted.nonzero().flatten()
    numbers = numbers[scores[numbers].argsort(descending=True, stable=True)]
    places = torch.linspace(0, len(numbers) - 1, min(most, len(numbers)), dtype=torch.float64).round().long()
    return numbers[places].tolist()


def _quantiles(scores: Tensor) -> dict[str, float]:
    lowest, median, highest = (float(each) for each in scores.double().quantile(torch.tensor([0.0, 0.5, 1.0]).double()))
    return {"images": len(scores), "lowest": lowest, "median": median, "highest": highest}


def draw_maps(shown: Sequence[Shown], path: Path) -> None:
    """Write a PNG with a panel for each image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a third of a second that training need not wait for
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure((PANEL * columns, PANEL * rows), DPI)
    highest = max(float(one.map.max()) for one in shown)
    for place, one in enumerate(shown):
        row, column = divmod(place, columns)
        within = (column / columns, 1 - (row + 1) / rows, 1 / columns, (1 - TITLE) / rows)
        _draw(figure.add_axes(within), one, highest)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


def _draw(axes: Axes, one: Shown, highest: float) -> None:
    height, width = one.pixels.shape[1:]
    extent = (0.0, float(width), float(height), 0.0)
    pixels = one.pixels.float().mean(0)
    axes.imshow(pixels.numpy(), cmap="gray", extent=extent)
    heat = one.map.clamp(min=0.0).numpy()
    axes.imshow(heat, cmap="jet", alpha=OPACITY, extent=extent, vmin=0.0, vmax=highest, interpolation="bilinear")
    if one.mask is not None and bool((one.mask != 0).any()) and not bool((one.mask != 0).all()):
        axes.contour((one.mask != 0).numpy(), levels=[0.5], colors="white", linewidths=1, extent=extent, origin="upper")
    axes.set_title(f"{'anomalous' if one.anomalous else 'normal'}: {one.score:.3f}", fontsize=7, pad=2)
    axes.set_axis_off()
