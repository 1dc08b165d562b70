"""The row loss that is asked for most, forward KL with cross-entropy, written out for a processor.

The plain path lets autograd differentiate the terms, at some thirty passes over the logits. Here the derivative is
known, the passes are ten, and a block of rows small enough for the cache goes through all of them before the next one.
What it does not cover is left to the plain path: other divergences, soft caps, smoothed labels, masked columns.

Letters: R rows, C columns of the student, D of the teacher, S = min(C, D). p is the teacher's softmax, q the student's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worker.kernels.spec import RowSpec
from worker.losses.base import at_least_float32

BLOCK = 1 << 20
"""Logits of a block: four megabytes in float32, held four times over. Smaller ones wait for more threads to meet."""


class Block(NamedTuple):
    """Some rows."""

    student: Tensor
    """Logits (R, C)."""
    teacher: Tensor
    """Logits (R, D)."""
    labels: Tensor
    """(R,) int64; any class where the row does not count or the cross-entropy weighs nothing."""
    weights: Tensor
    """(R,) in the dtype of the losses; 0 where the row does not count."""


class Masses(NamedTuple):
    """A softmax that isn't divided by its sum."""

    values: Tensor
    """(R, C)."""
    total: Tensor
    """Their sums (R, 1)."""


def covers(spec: RowSpec) -> bool:
    """Whether `forward_kl_` computes what `spec` asks for."""
    kl = spec.divergence
    if kl is None or kl.kind != "forward-kl" or spec.divergence_weight == 0.0 or spec.label_smoothing != 0.0:
        return False
    return kl.softcap is None and kl.logit_scale == 1.0


def forward_kl_(block: Block, spec: RowSpec, gradient: bool) -> tuple[Tensor, Tensor] | None:
    """Divergence and cross-entropy of each row (R,) without its weight; None, and nothing done, at a masked column.

    With `gradient`, the student's logits become the gradient of the weighted sum of the rows.
    """
    assert spec.divergence is not None
    temperature = spec.divergence.temperature
    raw, theirs = _shifted(block.student), _shifted(block.teacher).div_(temperature)
    soft = raw if temperature == 1.0 else raw / temperature
    p, shared = _masses(theirs), slice(min(soft.shape[1], theirs.shape[1]))
    apart = (_dot(p.values[:, shared], theirs[:, shared]) - _dot(p.values[:, shared], soft[:, shared])) / p.total
    if not bool(apart.isfinite().all()):
        return None
    target = raw.gather(1, block.labels.unsqueeze(1))
    q = _masses(soft, block.student if gradient and block.student.dtype == soft.dtype else None)
    once = q if soft is raw or not spec.ce_weight else _masses(raw, raw)
    # what the teacher gives to columns that the student lacks is taken out after its softmax
    known = p.values[:, shared].sum(1, keepdim=True) / p.total
    divergence = temperature**2 * (apart + known * (q.total.log() - p.total.log()))
    if gradient:
        weight = block.weights.unsqueeze(1)
        hard = weight * spec.ce_weight
        _combine(q, once, p, known, weight * (spec.divergence_weight * temperature), hard)
        q.values.scatter_add_(1, block.labels.unsqueeze(1), -hard)
        block.student.copy_(q.values)  # costs nothing where they are the same
    cross_entropy = once.total.log() - target if spec.ce_weight else torch.zeros_like(target)
    return divergence.squeeze(1), cross_entropy.squeeze(1)


def _combine(q: Masses, once: Masses, p: Masses, known: Tensor, soft: Tensor, hard: Tensor) -> None:
    """Make of q: `soft` (known q - p) + `hard` times the softmax at temperature 1; factors are (R, 1)."""
    if once is q:
        q.values.mul_((soft * known + hard) / q.total)
    else:
        q.values.mul_(soft * known / q.total).add_(once.values.mul_(hard / once.total))
    q.values[:, : p.values.shape[1]].sub_(p.values[:, : q.values.shape[1]].mul_(soft / p.total))


def _shifted(logits: Tensor) -> Tensor:
    """A copy less the row's maximum, which keeps exponentials and products in range."""
    wide = at_least_float32(logits)
    return wide - wide.amax(1, keepdim=True)


def _masses(logits: Tensor, into: Tensor | None = None) -> Masses:
    values = torch.exp(logits, out=into)
    return Masses(values, values.sum(1, keepdim=True))


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Products of the rows (R, 1), in one pass and with no memory for what is summed."""
    return torch.bmm(first.unsqueeze(1), second.unsqueeze(2)).squeeze(1)
