"""Divergences between the softened distributions, as language models are distilled with; rows may be tokens.

All are computed in log space, mixtures too, so that probabilities that underflow on both sides do no harm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.losses import Akl, BdKd, Jsd, SkewKl, SkewReverseKl
from worker.losses.softened import SoftenedTerm, entropy, kl, mixture


class ReverseKlTerm(SoftenedTerm):
    """KL(q || p)."""

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kl(student, teacher)


class JsdTerm(SoftenedTerm):
    """beta KL(p || m) + (1 - beta) KL(q || m), where m is beta p + (1 - beta) q (2306.13649).

    At the ends, where that would be 0 for any student, it is forward and reverse KL by definition.
    """

    spec: Jsd

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        beta = self.spec.beta
        if beta in (0.0, 1.0):
            return kl(student, teacher) if beta else kl(teacher, student)
        middle = mixture(beta, teacher, student)
        return beta * kl(teacher, middle) + (1.0 - beta) * kl(student, middle)


class SkewKlTerm(SoftenedTerm):
    """KL(p || skew p + (1 - skew) q) (2402.03898)."""

    spec: SkewKl

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kl(teacher, mixture(self.spec.skew, teacher, student))


class SkewReverseKlTerm(SoftenedTerm):
    """KL(q || (1 - skew) p + skew q) (2402.03898)."""

    spec: SkewReverseKl

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kl(student, mixture(self.spec.skew, student, teacher))


class TvdTerm(SoftenedTerm):
    """1/2 sum |p - q|; the gradient of an equal pair is 0."""

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 0.5 * (teacher.exp() - student.exp()).abs().sum(-1)


class BdKdTerm(SoftenedTerm):
    """T^2 (w KL(p || q) + v KL(q || p)); (w, v) is (delta, 1) where q has less entropy than p, else (1, delta).

    The choice has no gradient. The teacher stands still here; the paper (2212.12965) trains it too.
    """

    spec: BdKd

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        overconfident = entropy(student.detach()) < entropy(teacher)
        forward, reverse = kl(teacher, student), kl(student, teacher)
        leading = torch.where(overconfident, forward, reverse)
        return self.spec.temperature**2 * (forward + reverse + (self.spec.delta - 1.0) * leading)


class AklTerm(SoftenedTerm):
    """h KL(p || q) + (1 - h) KL(q || p), where h is the head's share of the gap between both (2404.02657).

    h has no gradient, and is 1/2 where there is no gap. Costs a sort over the classes, which also chooses among equal
    probabilities at the edge of the head.
    """

    spec: Akl

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        share = self.head_share(student.detach(), teacher)
        return share * kl(teacher, student) + (1.0 - share) * kl(student, teacher)

    def head_share(self, student: Tensor, teacher: Tensor) -> Tensor:
        """h of each row (B,), from log-probabilities (B, C)."""
        p, order = teacher.exp().sort(dim=-1, descending=not self.spec.boundary_in_head)
        gaps = (p - student.exp().gather(-1, order)).abs()
        head, total = gaps.where(self._head(p), 0.0).sum(-1), gaps.sum(-1)
        return torch.where(total > 0.0, head / total, 0.5)

    def _head(self, p: Tensor) -> Tensor:
        """Which of the sorted probabilities (B, C) belong to the head.

        Both authors' codes are followed in how they count, because it decides among equal probabilities: one adds up
        from the likeliest class until `mu` is passed, the other from the least likely until 1 - `mu` is reached.
        """
        reached = p.cumsum(-1)
        if self.spec.boundary_in_head:
            return reached >= 1.0 - self.spec.mu
        likeliest = torch.arange(p.shape[-1], device=p.device) == 0
        return (reached <= self.spec.mu) | likeliest
