"""Loss on a plane through the weights (1712.09913), for each model.

P weights in all, G points on each axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from app.recipe.diagnostics import LossLandscape
from worker.data.randomness import generator
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, NotComputable
from worker.diagnostics.pictures import draw_panels, label
from worker.diagnostics.probe_loss import ProbeLoss, probing
from worker.metrics.hessian import eigenpairs
from worker.metrics.loss_surface import scaled, surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOLERANCE, STEPS = 1e-3, 100
"""Of the search for eigenvectors, as in `hessian` by default."""
LEVELS = 20


class LossLandscapeAnalysis:
    """Figures of the student (`student`) and of every teacher, by its name."""

    def __init__(self, spec: LossLandscape) -> None:
        self._spec = spec

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        assert inputs.train is not None  # given wherever a job runs diagnostics
        spec = self._spec
        points = torch.linspace(-spec.extent, spec.extent, spec.points, dtype=torch.float64)
        figures: dict[str, Mapping[str, float]] = {}
        surfaces: dict[str, Tensor] = {}
        warnings: list[str] = []
        for name, model in inputs.models.items():
            with probing(model, inputs.train, inputs.device) as loss:
                axes, converged = self._axes(loss, inputs.seed)
                surfaces[name] = surface(loss.at, loss.weights, axes, points)
                figures[name] = _figures(name, loss.at(loss.weights), surfaces[name])
            warnings += [] if converged else [f"an eigenvector of {name} still changed after {STEPS} steps"]
        rows = [row for name, losses in surfaces.items() for row in _rows(name, points, losses)]
        return DiagnosticResult(figures, rows, partial(draw_panels, surfaces, partial(_draw, points)), warnings)

    def _axes(self, loss: ProbeLoss, seed: int) -> tuple[list[Tensor], bool]:
        """Two directions (P,), and whether their search converged."""
        weights, random = loss.weights, generator(seed, "loss-landscape")

        def draw() -> Tensor:
            return torch.randn(len(weights), generator=random).to(weights)

        if self._spec.axes == "random":
            found, converged = [draw(), draw()], True
        else:
            _, found, converged = eigenpairs(loss.product, draw, 2, TOLERANCE, STEPS)
        return [loss.join(scaled(loss.split(axis), loss.tensors, self._spec.scaling)) for axis in found], converged


def _figures(name: str, middle: float, losses: Tensor) -> Mapping[str, float]:
    """Of losses (G, G) float64, as far as they are finite."""
    if not math.isfinite(middle):
        raise NotComputable(f"the loss of {name} is {middle}")
    finite = losses[losses.isfinite()]
    if not len(finite):
        raise NotComputable(f"the loss of {name} is not finite anywhere but at its weights")
    return {
        "loss": middle,
        "lowest": float(finite.min()),
        "highest": float(finite.max()),
        "mean_rise": float((finite - middle).mean()),
        "not_finite": int(losses.numel() - len(finite)),
    }


def _rows(name: str, points: Tensor, losses: Tensor) -> Iterator[dict[str, Any]]:
    """The losses along the second axis for each point of the first; null where they are not finite."""
    for first, row in zip(points.tolist(), losses.tolist(), strict=True):
        yield {"model": name, "first": first, "losses": [value if math.isfinite(value) else None for value in row]}


def _draw(points: Tensor, axes: Axes, name: str, losses: Tensor) -> None:
    """Contours of the losses (G, G), at equal distances of their logarithms."""
    heights = losses.where(losses.isfinite(), losses[losses.isfinite()].max()).clamp(min=1e-12).log10()
    axes.contour(points.numpy(), points.numpy(), heights.T.numpy(), levels=LEVELS, linewidths=0.8)
    axes.plot([0.0], [0.0], "+", color="black")
    label(axes, f"{name}: {float(10 ** heights.min()):.2g} to {float(10 ** heights.max()):.2g}", "first", "second")
