"""Relational KD (1904.05068): distances and angles between the samples of a batch match the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from app.recipe.losses.features import Rkd
from worker.losses.base import LossInputs, teacher_logits
from worker.losses.builder import LossBuilder
from worker.losses.features.activations import both_vectors
from worker.losses.features.adapters import require_kind
from worker.tensors import at_least_float32

CLOSEST = 1e-6
"""Distances are at least this, as in the authors' code (1e-12 of their squares), where they have no gradient."""
AT_ONCE = 2**24
"""Elements of an intermediate result of the angles, whose memory grows as B^3: beyond it the angles are computed in
chunks, and recomputed for the gradient."""


class RkdTerm:
    """Mean loss of each row's pairs and triples; the mean over the rows is the paper's loss.

    Pairs of a row with itself are 0 and count in the means' denominators, as in the authors' code.
    """

    def __init__(self, spec: Rkd, builder: LossBuilder) -> None:
        self.spec = spec
        if spec.pair:
            require_kind(builder, builder.student(spec.pair.student), (2, 3, 4), "pair.student")
            require_kind(builder, builder.teacher(spec.pair.teacher, spec.teacher), (2, 3, 4), "pair.teacher")

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = self._embeddings(inputs)
        valid = (
            torch.ones(len(student), dtype=torch.bool, device=student.device) if inputs.valid is None else inputs.valid
        )
        loss = student.new_zeros(len(student))
        if self.spec.distance:
            loss = loss + self.spec.distance * distance_loss(student, teacher, valid, self.spec.delta)
        if self.spec.angle:
            loss = loss + self.spec.angle * angle_loss(student, teacher, valid, self.spec.delta)
        return loss

    def _embeddings(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        if self.spec.pair:
            return both_vectors(inputs, self.spec.pair, self.spec.reduction)
        return at_least_float32(inputs.student), teacher_logits(inputs)


def distance_loss(student: Tensor, teacher: Tensor, valid: Tensor, delta: float) -> Tensor:
    """Distance loss of each row (B,), from floating embeddings (B, D) each; `valid` (B,) bool."""
    pairs = valid.unsqueeze(0) & valid.unsqueeze(1)
    pairs = pairs & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    gaps = F.huber_loss(_distances(student, pairs), _distances(teacher, pairs), reduction="none", delta=delta)
    return gaps.sum(1) / valid.sum().clamp(min=1)


def _distances(embeddings: Tensor, pairs: Tensor) -> Tensor:
    """Distances (B, B) in units of their mean over the `pairs` (B, B) bool; 0 elsewhere."""
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.clamp(min=CLOSEST).where(pairs, 0.0)
    return distances / (distances.sum() / pairs.sum().clamp(min=1)).clamp(min=CLOSEST)


def angle_loss(student: Tensor, teacher: Tensor, valid: Tensor, delta: float) -> Tensor:
    """Angle loss of each row (B,) as the vertex, from floating embeddings (B, D) each; `valid` (B,) bool."""
    rows, width = len(student), max(student.shape[1], teacher.shape[1])
    step = max(1, AT_ONCE // (rows * max(rows, width)))
    if step >= rows:
        return _angle_loss(student, teacher, valid, delta, 0, rows)
    parts = [
        checkpoint(
            _angle_loss, student, teacher, valid, delta, first, step, use_reentrant=False, preserve_rng_state=False
        )
        for first in range(0, rows, step)
    ]
    return torch.cat(parts)


def _angle_loss(student: Tensor, teacher: Tensor, valid: Tensor, delta: float, first: int, count: int) -> Tensor:
    """Angle loss of `count` vertices from `first` on."""
    student_angles, teacher_angles = (_cosines(side, slice(first, first + count)) for side in (student, teacher))
    pairs = valid.unsqueeze(0) & valid.unsqueeze(1)
    gaps = F.huber_loss(student_angles, teacher_angles, reduction="none", delta=delta).where(pairs, 0.0)
    return gaps.sum((1, 2)) / valid.sum().clamp(min=1).square()


def _cosines(embeddings: Tensor, vertices: slice) -> Tensor:
    """Cosines (V, B, B) of the angle at each vertex between the directions to any two rows; 0 if a direction has length
    0."""
    directions = F.normalize(embeddings.unsqueeze(0) - embeddings[vertices].unsqueeze(1), dim=-1)
    return directions @ directions.mT
