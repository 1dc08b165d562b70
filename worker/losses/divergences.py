"""Divergences between student and teacher distributions, row by row; rows may be tokens."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import torch
from torch import Tensor

from app.recipe.losses import Akl, KdMse, Loss
from worker.kernels.log_probs import kl
from worker.kernels.references import divergence
from worker.kernels.spec import Divergence, DivergenceKind
from worker.losses.base import LossInputs, target_column
from worker.losses.softened import prepare, soften

KINDS: frozenset[str] = frozenset(get_args(DivergenceKind))


def divergence_of(spec: Loss) -> Divergence | None:
    """The divergence, with settings, by which the kernels compute a term; none: they have no such divergence."""
    kind = "forward-kl" if spec.kind == "kd" else spec.kind
    if kind not in KINDS:
        return None
    settings = {each.name: getattr(spec, each.name) for each in fields(Divergence) if hasattr(spec, each.name)}
    return Divergence(**{**settings, "kind": kind})


class DivergenceTerm:
    """A divergence of `worker.kernels.references`, where the formulas and their sources are.

    For labels that are probabilities the target is their arg-max, as in the authors' code of `nkd`.
    """

    def __init__(self, spec: Loss) -> None:
        found = divergence_of(spec)
        assert found is not None  # the table of terms uses this class for these kinds alone
        self.divergence, self.standardize = found, getattr(spec, "standardize", False)

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = prepare(inputs, self.standardize)
        return divergence(self.divergence, student, teacher, target_column(inputs.labels).squeeze(-1))


class AklTerm:
    """h KL(p || q) + (1 - h) KL(q || p), where h is the head's share of the gap between p and q (arXiv 2404.02657).

    h has no gradient, and is 1/2 where there is no gap. Costs a sort over the classes; its order also decides between
    equal probabilities at the edge of the head.
    """

    def __init__(self, spec: Akl) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher, _ = soften(inputs, self.spec)
        share = self.head_share(student.detach(), teacher)
        return share * kl(teacher, student) + (1.0 - share) * kl(student, teacher)

    def head_share(self, student: Tensor, teacher: Tensor) -> Tensor:
        """h of each row (B,), from log-probabilities `student` and `teacher` (B, C) in float32 or float64."""
        p, order = teacher.exp().sort(dim=-1, descending=not self.spec.boundary_in_head)
        gaps = (p - student.exp().gather(-1, order)).abs()
        head, total = gaps.where(self._head(p), 0.0).sum(-1), gaps.sum(-1)
        return torch.where(total > 0.0, head / total, 0.5)

    def _head(self, p: Tensor) -> Tensor:
        """(B, C) bool: which of the sorted probabilities (B, C) belong to the head.

        The authors have published two codes, which sum differently, and this decides between equal probabilities. One
        sums from the likeliest class until `mu` is passed, the second from the least likely until 1 - `mu` is reached.
        """
        reached = p.cumsum(-1)
        if self.spec.boundary_in_head:
            return reached >= 1.0 - self.spec.mu
        likeliest = torch.arange(p.shape[-1], device=p.device) == 0
        return (reached <= self.spec.mu) | likeliest


class KdMseTerm:
    """T^2 times the mean over the unmasked classes of (p - q)^2 (arXiv 2106.04570)."""

    def __init__(self, spec: KdMse) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher, masked = soften(inputs, self.spec)
        classes = (~masked).sum(-1).clamp(min=1)
        return self.spec.temperature**2 * (student.exp() - teacher.exp()).square().sum(-1) / classes
