"""Losses of queries with candidates.

Q queries; a sample has n rows: its query, its positives, its negatives, and padding. R = Q n.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.retrieval import LgAnna, Mw, UniMe
from worker.data.pairs import NEGATIVE, PADDING, POSITIVE, ROLE, SCORE
from worker.losses.base import LossInputs, teacher_logits
from worker.losses.embeddings import log_softmax_over, own_texts, query_cosines
from worker.tensors import at_least_float32

EPS = 1e-8
"""Added within logarithms by UniME's authors."""
AT_ONCE = 2**18
"""Comparisons that are computed at a time."""


class MwTerm:
    """The Mann-Whitney loss of the whole batch, in all rows (2510.00137)."""

    def __init__(self, spec: Mw) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        size, labels = inputs.rows_per_sample, inputs.labels
        cosines = query_cosines(at_least_float32(inputs.student), size) / self.spec.temperature
        roles = labels[:, ROLE]
        documents = (roles == POSITIVE) | (roles == NEGATIVE)
        negatives = cosines.masked_fill(~(documents & ~own_texts(labels, size)), -torch.inf)
        positives = own(cosines, size).masked_fill(roles.view(-1, size)[:, 1:] != POSITIVE, torch.inf)
        if not self.spec.per_query:
            kept = positives.isfinite()
            positives, negatives = positives[kept].unsqueeze(0), negatives.view(1, -1)
        return mann_whitney(positives, negatives).expand(len(labels))


def mann_whitney(positives: Tensor, negatives: Tensor) -> Tensor:
    """Mean over the groups of the mean of softplus(n - p) over their positives (G, P) and negatives (G, N), floating,
    where these are finite; a scalar, 0 without gradient if there are none. Groups without either are left out."""
    found, others = positives.isfinite().sum(1), negatives.isfinite().sum(1)
    pairs = (found * others).to(positives.dtype)
    counted = (pairs > 0).sum().clamp(min=1)
    weights = (pairs > 0) / (pairs.clamp(min=1) * counted)
    result: Tensor = _PairwiseSoftplus.apply(positives, negatives, weights)  # type: ignore[no-untyped-call]
    return result


class _PairwiseSoftplus(torch.autograd.Function):
    """Weighted sum of softplus(n - p) over the pairs of each group, some rows of pairs at a time. The gradient is
    computed with the value, so that memory is that of the scores."""

    @staticmethod
    def forward(ctx: Any, positives: Tensor, negatives: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=positives.device)
        of_positives, of_negatives = torch.zeros_like(positives), torch.zeros_like(negatives)
        rows = torch.arange(positives.numel(), device=positives.device)
        parts: tuple[Tensor, ...] = torch.split(rows, max(1, AT_ONCE // max(negatives.shape[1], 1)))
        for part in parts:
            group = part // positives.shape[1]
            gaps = negatives[group] - positives.reshape(-1)[part].unsqueeze(1)
            weight = weights[group].unsqueeze(1)
            total += (F.softplus(gaps) * weight).sum(dtype=torch.float64)
            slopes = gaps.sigmoid_().mul_(weight)
            of_positives.view(-1)[part] = -slopes.sum(1)
            of_negatives.index_add_(0, group, slopes)
        ctx.save_for_backward(of_positives, of_negatives)
        return total.to(positives.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        of_positives, of_negatives = ctx.saved_tensors
        return gradient * of_positives, gradient * of_negatives, None


class UniMeTerm:
    """A query's symmetric divergence from the distribution of the scores, in all rows of its sample (2510.13515)."""

    def __init__(self, spec: UniMe) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        size = inputs.rows_per_sample
        cosines = own_cosines(at_least_float32(inputs.student), size)
        scores = _scores(inputs) if self.spec.target == "scores" else own_cosines(teacher_logits(inputs), size)
        judge_temperature = self.spec.judge_temperature or self.spec.temperature
        losses = symmetric(cosines / self.spec.temperature, scores / judge_temperature, _there(inputs))
        return losses.repeat_interleave(size)


def symmetric(logits: Tensor, scores: Tensor, there: Tensor) -> Tensor:
    """Half of the sum of both divergences (Q,) between the softmax of floating `logits` and of `scores` (Q, K), over
    the candidates that are `there` (Q, K) bool; with EPS within the logarithm of the second argument."""
    log_q, log_p = (log_softmax_over(side, there) for side in (logits, scores))
    q, p = log_q.exp(), log_p.exp()
    both = p * (log_p - (q + EPS).log()) + q * (log_q - (p + EPS).log())
    return both.where(there, 0.0).sum(1) / 2


class LgAnnaTerm:
    """A query's contrastive loss and its divergence from relevance, in all rows of its sample (2506.07438)."""

    def __init__(self, spec: LgAnna) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        size = inputs.rows_per_sample
        cosines, taught = own_cosines(at_least_float32(inputs.student), size), own_cosines(teacher_logits(inputs), size)
        relevance = _scores(inputs) if self.spec.relevance == "scores" else taught
        positive = inputs.labels[:, ROLE].view(-1, size)[:, 1:] == POSITIVE
        hard, soft = self.parts(cosines, taught, relevance, positive, _there(inputs))
        return (hard + self.spec.soft_weight * soft).repeat_interleave(size)

    def parts(
        self, cosines: Tensor, taught: Tensor, relevance: Tensor, positive: Tensor, there: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The contrastive loss (Q,) and the divergence (Q,), from floating cosines of student and teacher and relevance
        (Q, K), and the candidates that are positives and that are there, (Q, K) bool."""
        kept = there & (positive | self.kept(taught))
        alone = kept & (~positive | (torch.arange(cosines.shape[1], device=cosines.device) == 0))
        logits = cosines / self.spec.temperature
        hard = -log_softmax_over(logits, alone)[:, 0]
        labels = relevance / self.spec.relevance_temperature
        log_q, log_p = (log_softmax_over(side, kept) for side in (logits, labels))
        return hard, (log_p.exp() * (log_p - log_q)).where(kept, 0.0).sum(1)

    def kept(self, taught: Tensor) -> Tensor:
        """Candidates (Q, K) bool whose cosine by the teacher (Q, K) is far enough below the first positive's."""
        first = taught[:, :1]
        limit = first - self.spec.margin if self.spec.keep == "margin" else first * self.spec.ratio
        return taught <= limit


def own(cosines: Tensor, size: int) -> Tensor:
    """Cosines (Q, n - 1) of the queries with the candidates of their own sample, from those with all rows (Q, R)."""
    sample = torch.arange(len(cosines), device=cosines.device)
    return cosines.view(len(cosines), -1, size)[sample, sample, 1:]


def own_cosines(vectors: Tensor, size: int) -> Tensor:
    """The same from floating vectors (R, D)."""
    samples = F.normalize(vectors, dim=-1).view(-1, size, vectors.shape[1])
    return (samples[:, 1:] @ samples[:, :1].mT).squeeze(-1)


def _scores(inputs: LossInputs) -> Tensor:
    """Scores (Q, n - 1) of the candidates, 0 for padding."""
    found = inputs.labels[:, SCORE].view(-1, inputs.rows_per_sample)[:, 1:]
    return found.to(at_least_float32(inputs.student).dtype).where(_there(inputs), 0.0)


def _there(inputs: LossInputs) -> Tensor:
    """Candidates (Q, n - 1) bool that are not padding."""
    return inputs.labels[:, ROLE].view(-1, inputs.rows_per_sample)[:, 1:] != PADDING
