"""Spectrum of a symmetric matrix that is known by its products with vectors: PyHessian (1912.07145) and the criteria of
loss landscape analysis.

P numbers of a vector, m steps of Lanczos, R runs of it, k eigenvectors.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 1e-6
"""Added to norms that vectors are divided by, as in PyHessian; eigenvalues are 2e-6 too small by it."""
SPREAD, MARGIN = 1e-5, 0.01
"""Variance of the densities' normal distributions, as a share of the spectrum's width where that is above 1, and what
lies beyond the spectrum on each side."""
Product = Callable[[Tensor], Tensor]
"""Product of the matrix with a vector (P,) floating."""
Draw = Callable[[], Tensor]
"""Draws a vector (P,) floating."""


class Eigenpairs(NamedTuple):
    """Eigenvalues of largest absolute value."""

    values: list[float]
    vectors: list[Tensor]
    """(P,) each."""
    converged: bool
    """Whether all of them did within the allowed steps."""


class Trace(NamedTuple):
    """Hutchinson's estimate."""

    value: float
    deviation: float
    """Standard error of the mean over the probes."""
    probes: int
    converged: bool


class Ritz(NamedTuple):
    """Spectrum as one run of Lanczos sees it."""

    values: Tensor
    """(m,) float64, ascending."""
    weights: Tensor
    """(m,) float64: squared first components of the eigenvectors; their sum is 1."""


class Density(NamedTuple):
    """Density of the spectrum at points of a grid."""

    grid: Tensor
    """(G,) float64."""
    values: Tensor
    """(G,) float64; their sum times the step of the grid is 1."""


def dot(one: Tensor, other: Tensor) -> float:
    """Product of two vectors (P,), summed in float64."""
    return float(one.double() @ other.double())


def normalised(vector: Tensor) -> Tensor:
    """A vector (P,) floating divided by its length and a millionth."""
    return vector / (math.sqrt(dot(vector, vector)) + LEAST)


def orthonormalised(vector: Tensor, others: Iterable[Tensor]) -> Tensor:
    """A vector (P,) floating without its parts along the others, which have unit length, and normalised."""
    for other in others:
        vector = vector - dot(vector, other) * other
    return normalised(vector)


def eigenpairs(product: Product, draw: Draw, count: int, tolerance: float, most: int) -> Eigenpairs:
    """The `count` eigenvalues of largest absolute value, by power iteration with deflation from vectors (P,) that are
    drawn; each stops when it changes by less than `tolerance` of itself, or after `most` steps."""
    values: list[float] = []
    vectors: list[Tensor] = []
    converged = True
    for _ in range(count):
        vector, value = normalised(draw()), math.inf
        for _ in range(most):
            vector = orthonormalised(vector, vectors)
            image = product(vector)
            before, value = value, dot(vector, image)
            vector = normalised(image)
            if abs(value - before) < tolerance * (abs(before) + LEAST) and math.isfinite(before):
                break
        else:
            converged = False
        values.append(value)
        vectors.append(vector)
    return Eigenpairs(values, vectors, converged)


def trace(product: Product, draw: Draw, tolerance: float, most: int) -> Trace:
    """Mean of v H v over vectors v (P,) of -1 and 1 that are drawn, until it changes by less than `tolerance` of
    itself, or for `most` vectors."""
    found: list[float] = []
    mean = math.inf
    for _ in range(most):
        vector = draw()
        found.append(dot(vector, product(vector)))
        before, mean = mean, sum(found) / len(found)
        if abs(mean - before) < tolerance * (abs(before) + LEAST) and math.isfinite(before):
            return Trace(mean, _error(found), len(found), converged=True)
    return Trace(mean, _error(found), len(found), converged=False)


def _error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    return float(torch.tensor(values, dtype=torch.float64).std()) / math.sqrt(len(values))


def lanczos(product: Product, start: Tensor, steps: int, kept: int | None = None) -> Ritz:
    """Ritz values of at most `steps` steps from `start` (P,) floating. A new vector is made orthogonal to the last
    `kept` ones; none: to all."""
    vectors = deque([normalised(start)], maxlen=kept)
    diagonal: list[float] = []
    beside: list[float] = []
    rest = torch.zeros_like(start)
    for step in range(min(steps, len(start))):
        if step:
            beta = math.sqrt(dot(rest, rest))
            if beta <= torch.finfo(torch.float64).tiny:
                break  # the vectors span an invariant subspace
            beside.append(beta)
            vectors.append(orthonormalised(rest, vectors))
        image = product(vectors[-1])
        diagonal.append(dot(image, vectors[-1]))
        rest = image - diagonal[-1] * vectors[-1]
        if step:
            rest = rest - beside[-1] * vectors[-2]
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    edge = torch.diag(torch.tensor(beside, dtype=torch.float64), 1) if beside else torch.zeros_like(tridiagonal)
    values, eigenvectors = torch.linalg.eigh(tridiagonal + edge + edge.T)
    return Ritz(values, eigenvectors[0].square())


def density(runs: Sequence[Ritz], points: int) -> Density:
    """Mean over the R runs, each a sum of normal distributions around the Ritz values (m,) with their weights (m,), at
    so many points."""
    low = sum(float(run.values.min()) for run in runs) / len(runs) - MARGIN
    high = sum(float(run.values.max()) for run in runs) / len(runs) + MARGIN
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    variance = SPREAD * max(1.0, high - low)
    total = torch.zeros_like(grid)
    for values, weights in runs:
        bells = torch.exp(-(grid.unsqueeze(1) - values).square() / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        total += bells @ weights
    return Density(grid, total / (total.sum() * (grid[1] - grid[0])))


def eigenvalue_ratio(runs: Sequence[Ritz]) -> float:
    """`re`: mean over the runs of |least Ritz value / largest one|, of values (m,); near 0 at a minimum."""
    return sum(abs(float(run.values.min() / run.values.max())) for run in runs) / len(runs)


def negative_share(runs: Sequence[Ritz], power: float) -> float:
    """`Kh_n`: mean over the runs of sum |l w|^n over negative Ritz values l (m,) divided by that over positive ones,
    with their weights w (m,) and n = `power`; near 0 at a minimum."""
    found = []
    for values, weights in runs:
        sizes = (values * weights).abs().pow(power)
        found.append(float(sizes[values < 0].sum() / sizes[values > 0].sum()))
    return sum(found) / len(found)
