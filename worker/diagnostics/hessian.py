"""Spectrum of the Hessian (1912.07145), for each model.

P weights in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from app.recipe.diagnostics import Hessian
from worker.data.randomness import generator
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, NotComputable
from worker.diagnostics.pictures import draw_panels, label
from worker.diagnostics.probe_loss import ProbeLoss, probing
from worker.metrics.hessian import (
    Eigenpairs,
    Ritz,
    Trace,
    density,
    eigenpairs,
    eigenvalue_ratio,
    lanczos,
    negative_share,
    trace,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS, LEAST = 10_000, 1e-6
"""Points of a density, and the least one in a picture."""


class Spectrum(NamedTuple):
    """Spectrum of one model's loss."""

    loss: float
    weights: int
    trace: Trace
    top: Eigenpairs
    runs: list[Ritz]


class HessianAnalysis:
    """Figures of the student (`student`) and of every teacher, by its name."""

    def __init__(self, spec: Hessian) -> None:
        self._spec = spec

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        assert inputs.train is not None  # given wherever a job runs diagnostics
        spectra: dict[str, Spectrum] = {}
        for name, model in inputs.models.items():
            with probing(model, inputs.train, inputs.device) as loss:
                spectra[name] = self._spectrum(name, loss, inputs.seed)
        figures = {name: self._figures(one) for name, one in spectra.items()}
        rows = [row for name, one in spectra.items() for row in _rows(name, one)]
        unfinished = [name for name, one in spectra.items() if not (one.top.converged and one.trace.converged)]
        return DiagnosticResult(figures, rows, partial(draw_panels, spectra, _draw), [*map(_unfinished, unfinished)])

    def _spectrum(self, name: str, loss: ProbeLoss, seed: int) -> Spectrum:
        spec, weights = self._spec, loss.weights
        value = loss.at(weights)
        if not torch.tensor(value).isfinite():
            raise NotComputable(f"the loss of {name} is {value}")
        random = generator(seed, "hessian")
        top = eigenpairs(loss.product, partial(_normal, weights, random), spec.eigenvalues, spec.tolerance, spec.steps)
        mean = trace(loss.product, partial(_signs, weights, random), spec.tolerance, spec.steps)
        runs = [
            lanczos(loss.product, _signs(weights, random), spec.lanczos_steps, spec.kept_vectors)
            for _ in range(spec.runs)
        ]
        return Spectrum(value, len(weights), mean, top, runs)

    def _figures(self, found: Spectrum) -> Mapping[str, float]:
        return {
            "loss": found.loss,
            "weights": found.weights,
            "trace": found.trace.value,
            "trace_error": found.trace.deviation,
            **{f"eigenvalue_{number}": value for number, value in enumerate(found.top.values, start=1)},
            "re": eigenvalue_ratio(found.runs),
            "kh": negative_share(found.runs, self._spec.power),
        }


def _normal(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(len(like), generator=random).to(like)


def _signs(like: Tensor, random: torch.Generator) -> Tensor:
    return (2.0 * torch.randint(2, (len(like),), generator=random) - 1.0).to(like)


def _rows(name: str, found: Spectrum) -> Iterator[dict[str, Any]]:
    """Ritz values and their weights, by run."""
    for number, run in enumerate(found.runs, start=1):
        for value, weight in zip(run.values.tolist(), run.weights.tolist(), strict=True):
            yield {"model": name, "run": number, "value": value, "weight": weight}


def _unfinished(name: str) -> str:
    return f"an eigenvalue or the trace of {name} still changed by more than the tolerance after the last step"


def _draw(axes: Axes, name: str, found: Spectrum) -> None:
    curve = density(found.runs, POINTS)
    axes.semilogy(curve.grid.numpy(), curve.values.clamp(min=LEAST).numpy(), linewidth=1)
    label(axes, name, "eigenvalue", "density")
