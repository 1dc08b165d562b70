"""The most frequent row losses, cross-entropy with forward KL or alone, with explicit gradients for a CPU.

The plain path uses autograd, with some thirty passes over the logits. Here the derivative is explicit, there are seven
passes, and all are done on a block of rows small enough for the cache before the next block. Other divergences,
smoothed labels and masked columns are left to the plain path.

Letters: R rows, C columns of the student, D of the teacher, S = min(C, D). p is the teacher's softmax, q the student's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worker.kernels.spec import RowSpec
from worker.tensors import at_least_float32

BLOCK_OF_A_THREAD = 1 << 18
"""Logits of a block per thread: a megabyte in float32, with two copies."""


class RowBlock(NamedTuple):
    """Inputs of R rows."""

    student: Tensor
    """Logits (R, C), floating."""
    teacher: Tensor | None
    """Logits (R, D), floating; set for a divergence alone."""
    labels: Tensor
    """(R,) int64; any class if the row does not count or the cross-entropy has weight 0."""
    weights: Tensor
    """(R,) in the dtype of the losses; 0 if the row does not count."""


class Softmax(NamedTuple):
    """Softmax of a block's rows, float32 or float64."""

    values: Tensor
    """(R, C)."""
    log_sum: Tensor
    """log sum exp of the logits (R, 1)."""


def covers(spec: RowSpec) -> bool:
    """Whether `forward_kl_` computes `spec`."""
    kl = spec.divergence
    if kl is None or kl.kind != "forward-kl":
        return False
    return spec.divergence_weight != 0.0 and spec.label_smoothing == 0.0


def covers_alone(spec: RowSpec) -> bool:
    """Whether `cross_entropy_` computes `spec`."""
    if spec.ce_weight == 0.0 or spec.label_smoothing != 0.0:
        return False
    return spec.divergence is None or spec.divergence_weight == 0.0


def cross_entropy_(block: RowBlock, spec: RowSpec, gradient: bool) -> tuple[Tensor, Tensor]:
    """Zeros for the divergence, and the cross-entropy of each row, both (R,); `gradient` as in `forward_kl_`."""
    student = at_least_float32(block.student)
    target = student.gather(1, block.labels.unsqueeze(1))
    q = softmax(student, 1.0, student if gradient else None)
    if gradient:
        hard = block.weights.unsqueeze(1) * spec.ce_weight
        block.student.copy_(q.values.mul_(hard).scatter_add_(1, block.labels.unsqueeze(1), -hard))
    return torch.zeros_like(block.weights), (q.log_sum - target).squeeze(1)


def block_size() -> int:
    """Logits of a block."""
    return BLOCK_OF_A_THREAD * torch.get_num_threads()


def forward_kl_(block: RowBlock, spec: RowSpec, gradient: bool) -> tuple[Tensor, Tensor] | None:
    """Unweighted divergence and cross-entropy of each row (R,); None, and no change, if a column is masked.

    With `gradient`, the student's logits are overwritten by the gradient of the rows' weighted sum.
    """
    assert spec.divergence is not None
    assert block.teacher is not None
    temperature = spec.divergence.temperature
    student, teacher = at_least_float32(block.student), at_least_float32(block.teacher)
    p, shared = softmax(teacher, temperature), slice(min(student.shape[1], teacher.shape[1]))
    gap = teacher[:, shared] - student[:, shared]
    weighted_gap = gap.mul_(p.values[:, shared]).sum(1, keepdim=True).div_(temperature)
    del gap  # its memory is reused
    if not bool(weighted_gap.isfinite().all()):
        return None
    target = student.gather(1, block.labels.unsqueeze(1))
    q, once = _of_student(student, temperature, spec.ce_weight != 0.0, gradient)
    # the teacher's probability of columns that the student lacks is removed after its softmax
    shared_mass = (
        p.values[:, shared].sum(1, keepdim=True)
        if teacher.shape[1] > student.shape[1]
        else torch.ones_like(weighted_gap)
    )
    divergence = temperature**2 * (weighted_gap + shared_mass * (q.log_sum - p.log_sum))
    if gradient:
        weight = block.weights.unsqueeze(1)
        hard = weight * spec.ce_weight
        _combine(q, once, p, shared_mass, weight * (spec.divergence_weight * temperature), hard)
        q.values.scatter_add_(1, block.labels.unsqueeze(1), -hard)
        block.student.copy_(q.values)  # no copy if they are the same
    cross_entropy = once.log_sum - target if spec.ce_weight else torch.zeros_like(target)
    return divergence.squeeze(1), cross_entropy.squeeze(1)


def _of_student(student: Tensor, temperature: float, hard: bool, overwrite: bool) -> tuple[Softmax, Softmax]:
    """The student's softmax at the temperature, and with `hard` the one at 1; else the first one twice."""
    into = student if overwrite else None
    if temperature == 1.0 or not hard:
        q = softmax(student, temperature, into)
        return q, q
    return softmax(student, temperature), softmax(student, 1.0, into)


def _combine(q: Softmax, once: Softmax, p: Softmax, shared_mass: Tensor, soft: Tensor, hard: Tensor) -> None:
    """Overwrite q by `soft` (shared_mass q - p) + `hard` times the softmax at temperature 1; factors are (R, 1)."""
    if once is q:
        q.values.mul_(soft * shared_mass + hard)
    else:
        q.values.mul_(soft * shared_mass).add_(once.values.mul_(hard))
    q.values[:, : p.values.shape[1]].sub_(p.values[:, : q.values.shape[1]].mul_(soft))


def softmax(logits: Tensor, temperature: float, into: Tensor | None = None) -> Softmax:
    """Softmax of logits (R, C), float32 or float64, at a temperature, written `into` (R, C) if given; the log-sum
    is computed from the largest value, whose exponential was 1."""
    scaled = logits if temperature == 1.0 else torch.div(logits, temperature, out=into)
    top = scaled.amax(1, keepdim=True)
    values = torch.softmax(scaled, -1, out=scaled if scaled is not logits else into)
    return Softmax(values, top - values.amax(1, keepdim=True).log())
