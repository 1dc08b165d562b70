"""DIST (2205.10536): the student matches the relations of the teacher's predictions, not their values."""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.losses import Dist
from worker.kernels.log_probs import log_probs
from worker.losses.base import LossInputs
from worker.losses.softened import prepare
from worker.tensors import surely_none

EPS = 1e-8
"""Added to the product of the norms, as in the authors' code."""


class DistTerm:
    """T^2 (beta (1 - correlation over a row's classes) + gamma (1 - correlation over a class's rows)).

    The second part couples the rows: every row has the mean over the classes as its loss, so that the mean over the
    valid rows equals it. This holds if the call gets the whole batch. Invalid rows and masked
    columns are left out of every mean. Where a row or a column is constant its correlation is 0, with no gradient.
    """

    def __init__(self, spec: Dist) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = (logits / self.spec.temperature for logits in prepare(inputs, standardized=False))
        log_q, log_p, masked = log_probs(student, teacher)
        ignored = masked if inputs.valid is None else masked | ~inputs.valid.unsqueeze(-1)
        counted = None if surely_none(ignored) else ~ignored
        q, p = log_q.exp(), log_p.exp()
        within = 1.0 - correlation(q, p, counted, dim=1)
        between = 1.0 - correlation(q, p, counted, dim=0)
        return self.spec.temperature**2 * (self.spec.beta * within + self.spec.gamma * _mean(between, counted))


def correlation(first: Tensor, second: Tensor, counted: Tensor | None, dim: int) -> Tensor:
    """Pearson correlation along `dim`, (B,) or (C,), of two floating (B, C), over the entries that are `counted` (B, C)
    bool; none: all of them."""
    a, b = (_center(side, counted, dim) for side in (first, second))
    norms: Tensor = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim) / (norms + EPS)


def _mean(between: Tensor, counted: Tensor | None) -> Tensor:
    """Mean over the classes (C,) with a counted entry."""
    if counted is None:
        return between.mean()
    classes = counted.any(0)
    return between.where(classes, 0.0).sum() / classes.sum().clamp(min=1)


def _center(values: Tensor, counted: Tensor | None, dim: int) -> Tensor:
    if counted is None:
        return values - values.mean(dim, keepdim=True)
    count = counted.sum(dim, keepdim=True).clamp(min=1)
    mean = values.where(counted, 0.0).sum(dim, keepdim=True) / count
    return (values - mean).where(counted, 0.0)
