"""DEXML (2310.10636): queries choose their labels, of which several may be right: the texts of a batch, or classes.

Q queries, L labels: the documents of a batch, equal texts once. A sample has n rows, R = Q n. In a multi-label task a
row is a query, and the classes are the labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.retrieval import COSINE_TEMPERATURE, Dexml
from worker.data.pairs import NEGATIVE, POSITIVE, ROLE, SCORE, TEXT
from worker.losses.base import LossInputs
from worker.tensors import IGNORED, at_least_float32

AT_ONCE, LOGITS_AT_ONCE = 2**18, 2**21
"""Cosines, and given logits, whose losses are computed at a time."""
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
    that memory does not grow with the queries times the labels. Of logits the loss of each row, as many at a time."""

    def __init__(self, spec: Dexml) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.rows_per_sample == 1:  # a query of texts has candidates beside it
            losses: Tensor = _OfLogits.apply(inputs.student, inputs.labels, self.spec)  # type: ignore[no-untyped-call]
            return losses
        directions = F.normalize(at_least_float32(inputs.student), dim=-1)
        result: Tensor = _Chunked.apply(directions, inputs.labels, inputs.rows_per_sample, self.spec)  # type: ignore[no-untyped-call]
        return result.expand(len(inputs.labels))


class _Chunked(torch.autograd.Function):
    """Mean loss of the queries, from unit vectors (R, D)."""

    @staticmethod
    def forward(ctx: Any, directions: Tensor, labels: Tensor, size: int, spec: Dexml) -> Tensor:
        gradient, total = torch.zeros_like(directions), directions.new_zeros((), dtype=torch.float64)
        queries, temperature = len(labels) // size, spec.temperature or COSINE_TEMPERATURE
        for part, labelled in _parts(labels, size, spec, directions.dtype):
            own = directions[part * size]
            with torch.enable_grad():
                scores = (own @ directions.T / temperature).requires_grad_()
                loss = label_losses(scores, labelled, spec).sum() / queries
            (slopes,) = torch.autograd.grad(loss, scores)
            total += loss.detach()
            gradient.addmm_(slopes.T, own, alpha=1.0 / temperature)
            gradient[part * size] += slopes @ directions / temperature
        ctx.save_for_backward(gradient)
        return total.to(directions.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        return upstream * ctx.saved_tensors[0], None, None, None


class _OfLogits(torch.autograd.Function):
    """Loss (B,) of each row in at least float32, from floating logits (B, C) and targets (B, C) floating or (B, P)
    int32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, spec: Dexml) -> Tensor:
        gradient, losses = torch.empty_like(logits), list[Tensor]()
        rows = max(1, LOGITS_AT_ONCE // logits.shape[1])
        parts = (torch.split(each, rows) for each in (logits, targets, gradient))
        for own, right, slopes in zip(*parts, strict=True):
            with torch.enable_grad():
                scores = at_least_float32(own.detach()).requires_grad_()
                found = label_losses(scores, _labelled(right, scores, spec), spec)
            slopes.copy_(torch.autograd.grad(found, scores, torch.ones_like(found))[0])
            losses.append(found.detach())
        ctx.save_for_backward(gradient)
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.unsqueeze(1).to(gradient.dtype), None, None


def _labelled(targets: Tensor, scores: Tensor, spec: Dexml) -> Labelled:
    """All classes, for scores (n, C), with targets (n, C) floating or numbers (n, P) int32 of the positives."""
    if targets.dtype == torch.int32:
        places = targets.long().masked_fill(targets == IGNORED, scores.shape[1])
        targets = scores.new_zeros(len(scores), scores.shape[1] + 1).scatter_(1, places, 1.0)[:, :-1]
    positive = targets > 0
    weights = targets if spec.weighted else positive
    return Labelled(positive, torch.ones_like(positive), weights.to(scores.dtype))


def _parts(labels: Tensor, size: int, spec: Dexml, dtype: torch.dtype) -> Iterator[tuple[Tensor, Labelled]]:
    """Numbers (q,) of some queries, and which rows (q, R) are right for them."""
    roles = labels[:, ROLE]
    documents = (roles == POSITIVE) | (roles == NEGATIVE)
    label = _labels_of(labels[:, TEXT], documents)
    distinct = documents & (label == torch.arange(len(labels), device=labels.device))
    samples = torch.arange(len(labels) // size, device=labels.device)
    values = (labels[:, SCORE] if spec.weighted else torch.ones_like(roles)).to(dtype).where(roles == POSITIVE, 0.0)
    parts: tuple[Tensor, ...] = torch.split(samples, max(1, AT_ONCE // len(labels)))
    for part in parts:
        rows = part.unsqueeze(1) * size + torch.arange(size, device=labels.device)
        weights = torch.zeros(len(part), len(labels), dtype=dtype, device=labels.device)
        own = label[rows[:, 1:]]
        right = torch.zeros_like(weights).scatter_add_(1, own, (roles[rows[:, 1:]] == POSITIVE).to(dtype)) > 0
        weights.scatter_reduce_(1, own, values[rows[:, 1:]], "amax")
        counted, asked = distinct.repeat(len(part), 1), label[rows[:, :1]]
        counted.scatter_(1, asked, counted.gather(1, asked) & right.gather(1, asked))
        yield part, Labelled(right, counted, weights)


def _labels_of(texts: Tensor, documents: Tensor) -> Tensor:
    """For each row (R,) the first document with its text, int64; if there is none, the first row with it."""
    order = documents.logical_not().to(torch.uint8).argsort(stable=True)
    order = order[texts[order].argsort(stable=True)]
    ordered = texts[order]
    begins = torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]])
    begin = torch.arange(len(texts), device=texts.device).where(begins, 0).cummax(0).values
    return torch.empty_like(order).index_copy_(0, order, order[begin])


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
    """Logarithm of the memberships (Q, L); see `soft_top_k`."""
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
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
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
