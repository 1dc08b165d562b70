"""Curvature: the spectrum of the loss's Hessian, and the loss around the trained weights."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, Paper, Positive
from app.recipe.diagnostics.base import DiagnosticSpec


class ProbedLoss(DiagnosticSpec):
    """Fields of analyses of the loss as a function of the weights: the mean cross-entropy on training samples."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    applies: ClassVar[str] = "Single-label classification, of samples or of the words of texts."
    samples: int | None = Field(512, ge=1)
    """Training samples, drawn by the job's seed, on which the loss is computed; none: all."""

    def judged(self, left: int) -> int:
        return 0

    def trained(self, count: int) -> int:
        return count if self.samples is None else min(count, self.samples)


class Hessian(ProbedLoss):
    """Trace, largest eigenvalues and density of the spectrum of the Hessian of the loss with respect to all weights, of
    the student and of every teacher, and two ratios that are near 0 at a well-formed minimum.

    The density is that of stochastic Lanczos quadrature. A product with the Hessian takes a forward and two backward
    passes on the samples; there are at most `steps` for each eigenvalue and for the trace, and `lanczos_steps` for
    each of the `runs`.
    """

    paper: ClassVar[Paper | None] = Paper("PyHessian: Neural Networks Through the Lens of the Hessian", "1912.07145")
    kind: Literal["hessian"] = "hessian"
    eigenvalues: int = Field(2, ge=1, le=100)
    """Eigenvalues of largest absolute value."""
    steps: int = Field(100, ge=2, le=10_000)
    """Most steps of the power iteration for an eigenvalue, and most random vectors for the trace."""
    tolerance: Positive = 1e-3
    """Relative change of an eigenvalue, or of the trace, at which its iteration stops."""
    lanczos_steps: int = Field(100, ge=2, le=1000)
    """Steps of Lanczos in a run; at most as many as there are weights."""
    runs: int = Field(1, ge=1, le=100)
    """Runs of Lanczos, each from a random vector."""
    kept_vectors: int | None = Field(None, ge=2, le=1000)
    """Last vectors of Lanczos to which a new one is made orthogonal, each as large as all weights; none: all of
    them."""
    power: Positive = 0.5
    """Exponent n of the ratio Kh_n."""


class LossLandscape(ProbedLoss):
    """The loss on a plane through the trained weights, of the student and of every teacher."""

    paper: ClassVar[Paper | None] = Paper("Visualizing the Loss Landscape of Neural Nets", "1712.09913")
    kind: Literal["loss-landscape"] = "loss-landscape"
    axes: Literal["random", "hessian"] = "random"
    """Directions of the plane: normal random numbers, drawn by the job's seed, or the eigenvectors of the Hessian's two
    eigenvalues of largest absolute value, which batch norm distorts less."""
    scaling: Literal["filter", "layer", "model", "weight"] = "filter"
    """Scaling of the directions: to the length of every filter (slice of a tensor along its first axis; vectors as a
    whole), of every tensor, or of all weights together, or by multiplying them with the weights."""
    points: int = Field(41, ge=3, le=201)
    """Points on each axis; the loss is computed at the square of that. An odd number has the weights themselves in the
    middle."""
    extent: Positive = 1.0
    """Largest coordinate on each axis, in units of the scaled directions; the least is its negative."""
