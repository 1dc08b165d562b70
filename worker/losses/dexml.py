"""DEXML (2310.10636): queries choose their labels, the texts of a batch, of which several may be right.

Q queries, L labels: the documents of a batch, equal texts once. A sample has n rows, R = Q n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.retrieval import Dexml
from worker.data.pairs import NEGATIVE, POSITIVE, ROLE, SCORE, TEXT
from worker.losses.base import LossInputs
from worker.tensors import at_least_float32

AT_ONCE = 2**20
"""Cosines that are computed at a time."""
CONSTANT = -100.0
"""The authors' score of labels that are left out."""
TINY = 1e-20
"""Least sum of the slopes of a soft top-k, which vanish where all its sigmoids are saturated."""
HALVINGS, FEW_HALVINGS = 64, 32
"""Halvings in the search for a threshold, in float64 and in float32."""


class Labelled(NamedTuple):
    """Which labels (Q, L) are right for which queries."""

    positive: Tensor
    """bool."""
    counted: Tensor
    """bool: positives, and the labels that are wrong; others are left out."""
    weights: Tensor
    """Weights of the positives, floating."""


class DexmlTerm:
    """The loss of the whole batch, in all rows; some queries are computed at a time, and their gradient with them, so
    that memory does not grow with the queries times the labels."""

    def __init__(self, spec: Dexml) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        directions = F.normalize(at_least_float32(inputs.student), dim=-1)
        result: Tensor = _Chunked.apply(directions, inputs.labels, inputs.rows_per_sample, self.spec)  # type: ignore[no-untyped-call]
        return result.expand(len(inputs.labels))


class _Chunked(torch.autograd.Function):
    """Mean loss of the queries, from unit vectors (R, D)."""

    @staticmethod
    def forward(ctx: Any, directions: Tensor, labels: Tensor, size: int, spec: Dexml) -> Tensor:
        gradient, total = torch.zeros_like(directions), directions.new_zeros((), dtype=torch.float64)
        queries = len(labels) // size
        for part, labelled in _parts(labels, size, spec, directions.dtype):
            own = directions[part * size]
            with torch.enable_grad():
                scores = (own @ directions.T / spec.temperature).requires_grad_()
                loss = label_losses(scores, labelled, spec).sum() / queries
            (slopes,) = torch.autograd.grad(loss, scores)
            total += loss.detach()
            gradient += slopes.T @ own / spec.temperature
            gradient[part * size] += slopes @ directions / spec.temperature
        ctx.save_for_backward(gradient)
        return total.to(directions.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return upstream * ctx.saved_tensors[0], None, None, None


def _parts(labels: Tensor, size: int, spec: Dexml, dtype: torch.dtype) -> Iterator[tuple[Tensor, Labelled]]:
    """Numbers (q,) of some queries, and which rows (q, R) are right for them."""
    texts, roles = labels[:, TEXT], labels[:, ROLE]
    documents = ((roles == POSITIVE) | (roles == NEGATIVE)) & ~_repeated(texts, roles)
    samples = torch.arange(len(labels) // size, device=labels.device)
    for part in samples.split(max(1, AT_ONCE // len(labels))):
        rows = part.unsqueeze(1) * size + torch.arange(size, device=labels.device)
        own, own_roles = texts[rows], roles[rows]
        positive = torch.zeros(len(part), len(labels), dtype=torch.bool, device=labels.device)
        weights = torch.zeros(positive.shape, dtype=dtype, device=labels.device)
        for place in range(1, size):
            right = (own[:, place, None] == texts) & (own_roles[:, place, None] == POSITIVE) & documents & ~positive
            if spec.weighted:
                weights = torch.where(right, labels[rows[:, place], SCORE, None].to(dtype), weights)
            positive |= right
        asked = own[:, :1] == texts
        yield (
            part,
            Labelled(positive, documents & (positive | ~asked), weights if spec.weighted else positive.to(dtype)),
        )


def _repeated(texts: Tensor, roles: Tensor) -> Tensor:
    """Documents (R,) bool whose text an earlier document has, too."""
    number = texts.masked_fill((roles != POSITIVE) & (roles != NEGATIVE), -2)
    order = number.argsort(stable=True)
    ordered = number[order]
    again = torch.cat([torch.zeros_like(ordered[:1], dtype=torch.bool), ordered[1:] == ordered[:-1]])
    return torch.empty_like(again).index_copy_(0, order, again)


def label_losses(scores: Tensor, labelled: Labelled, spec: Dexml) -> Tensor:
    """Loss of each query (Q,), from floating scores (Q, L): cosines divided by the temperature."""
    positive, counted, weights = labelled
    outside = CONSTANT if spec.left_out == "constant" else -torch.inf
    scores = scores.masked_fill(~counted, outside)
    right = weights.where(positive, 0.0)
    count = positive.sum(1).clamp(min=1)
    if spec.criterion == "softmax":
        return (right * (scores.logsumexp(1, keepdim=True) - scores.where(positive, 0.0))).sum(1)
    if spec.criterion == "bce":
        used = torch.ones_like(counted) if spec.left_out == "constant" else counted
        return (F.softplus(scores).where(used, 0.0) - right * scores.where(positive, 0.0)).sum(1) / used.sum(1)
    if spec.criterion == "top-k":
        most = (counted.sum(1, keepdim=True) - 1).clamp(min=1, max=spec.k)
        likely = log_soft_top_k(scores, most, spec.alpha)
        return -(right * likely.where(positive, 0.0)).sum(1) / count
    others = scores.masked_fill(positive, outside).logsumexp(1, keepdim=True)
    own = scores.where(positive, 0.0)
    return (right * (torch.logaddexp(own, others) - own)).sum(1) / count


def soft_top_k(scores: Tensor, k: int | Tensor, alpha: float) -> Tensor:
    """Soft membership (Q, L) of the `k` largest floating scores (Q, L): sigmoids that add up to k, which may be (Q, 1)
    int64."""
    result: Tensor = _SoftTopK.apply(scores, k, alpha, False)  # type: ignore[no-untyped-call]
    return result


def log_soft_top_k(scores: Tensor, k: int | Tensor, alpha: float) -> Tensor:
    """Logarithm of `soft_top_k`."""
    result: Tensor = _SoftTopK.apply(scores, k, alpha, True)  # type: ignore[no-untyped-call]
    return result


class _SoftTopK(torch.autograd.Function):
    """Sigmoids of alpha (score + threshold), whose threshold is found by bisection, and differentiated implicitly."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int | Tensor, alpha: float, log: bool) -> Tensor:
        shifted = alpha * (scores + _threshold(scores, k, alpha))
        ctx.save_for_backward(member := shifted.sigmoid())
        ctx.alpha, ctx.log = alpha, log
        return F.logsigmoid(shifted) if log else member

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (member,) = ctx.saved_tensors
        slopes = ctx.alpha * member * (1.0 - member)
        own = upstream * (ctx.alpha * (1.0 - member) if ctx.log else slopes)
        shared = own.sum(1, keepdim=True) / (slopes.sum(1, keepdim=True) + TINY)
        return own - slopes * shared, None, None, None


def _threshold(scores: Tensor, k: int | Tensor, alpha: float) -> Tensor:
    """The threshold (Q, 1) with which the sigmoids of a row add up to `k`, or to the most that they can."""
    finite = scores.isfinite()
    low = -scores.amax(1, keepdim=True) - 10.0 / alpha
    high = -scores.masked_fill(~finite, torch.inf).amin(1, keepdim=True) + 10.0 / alpha
    for _ in range(HALVINGS if scores.dtype == torch.float64 else FEW_HALVINGS):
        middle = (low + high) / 2
        below = (alpha * (scores + middle)).sigmoid().sum(1, keepdim=True) < k
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
