"""Losses of sentence encoders, on embeddings or on similarities between embeddings.

Every text is a row; the texts of a pair are rows 2 i and 2 i + 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses.embeddings import Contrastive, EmbeddingDistance, PairScore, SimilarityMatrix
from worker.data.pairs import SCORE, TEXT
from worker.losses.base import LossInputs, teacher_logits
from worker.losses.builder import LossBuilder
from worker.tensors import at_least_float32


class EmbeddingDistanceTerm:
    """Distance between the teacher's embeddings and the student's, after a projection if needed (2004.09813)."""

    def __init__(self, spec: EmbeddingDistance, builder: LossBuilder) -> None:
        self.distance = spec.distance
        self.projection = _projection(spec, builder)

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = at_least_float32(inputs.student), teacher_logits(inputs)
        if self.projection is not None:
            student = self.projection(student)
        if self.distance == "cosine":
            return 1.0 - F.cosine_similarity(student, teacher)
        return (student - teacher).square().mean(1)


def _projection(spec: EmbeddingDistance, builder: LossBuilder) -> nn.Module | None:
    """Raises UserError if the widths differ and there is no projection."""
    width, teacher_width = builder.outputs, builder.teacher_outputs(spec.teacher)
    if spec.projection == "none" and width != teacher_width:
        found = f"the student's embeddings have {width} dimensions and the teacher's {teacher_width}"
        raise builder.refuse(f"{found}; accepted: auto, linear, or a student of the same width", "projection")
    if spec.projection == "none" or (spec.projection == "auto" and width == teacher_width):
        return None
    key = f"{spec.name}-projection-{spec.teacher or 'teacher'}"
    return builder.part(key, lambda: nn.Linear(width, teacher_width))


class SimilarityMatrixTerm:
    """Each row's cosines to all other rows, as distributions (2101.04731) or as values; 0 for a single row."""

    def __init__(self, spec: SimilarityMatrix) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = (cosines(side) for side in (at_least_float32(inputs.student), teacher_logits(inputs)))
        candidates = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
        if self.spec.compare == "mse":
            return (student - teacher).square().where(candidates, 0.0).sum(1) / candidates.sum(1).clamp(min=1)
        teacher_temperature = self.spec.teacher_temperature or self.spec.temperature
        return divergence(student / self.spec.temperature, teacher / teacher_temperature, candidates)


class ContrastiveTerm:
    """InfoNCE over the texts of the batch (1705.00652), with the pairs or a teacher's probabilities as targets.

    Rows of anchors have the loss. If only the first texts of the pairs are anchors, both rows of a pair have its
    anchor's loss, so that the mean over the rows is the mean over the anchors.
    """

    def __init__(self, spec: Contrastive) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits = cosines(at_least_float32(inputs.student)) / self.spec.temperature
        candidates = self._candidates(inputs.labels[:, TEXT])
        losses = (
            self._teacher_loss(inputs, logits, candidates)
            if self.spec.target == "teacher"
            else _pair_loss(logits, candidates)
        )
        return losses if self.spec.anchors == "both" else losses[0::2].repeat_interleave(2)

    def _teacher_loss(self, inputs: LossInputs, logits: Tensor, candidates: Tensor) -> Tensor:
        teacher_temperature = self.spec.teacher_temperature or self.spec.temperature
        return divergence(logits, cosines(teacher_logits(inputs)) / teacher_temperature, candidates)

    def _candidates(self, texts: Tensor) -> Tensor:
        """(R, R) bool: the candidates of each row; `texts` (R,) int64 are numbers, the same for equal texts."""
        row = torch.arange(len(texts), device=texts.device)
        partner = row ^ 1
        same = texts.unsqueeze(1) == texts.unsqueeze(0)
        candidates = ~(same | same[partner])
        if self.spec.others == "opposite":
            candidates = candidates & (row.unsqueeze(1) % 2 != row.unsqueeze(0) % 2)
        return candidates | (partner.unsqueeze(1) == row)


class PairScoreTerm:
    """Squared difference between a pair's cosine and its score (1908.10084), in both rows of the pair."""

    def __init__(self, spec: PairScore) -> None:
        self.lowest, self.span = spec.lowest, spec.highest - spec.lowest

    def __call__(self, inputs: LossInputs) -> Tensor:
        vectors = at_least_float32(inputs.student)
        similarity = F.cosine_similarity(vectors[0::2], vectors[1::2])
        target = (inputs.labels[0::2, SCORE].to(similarity.dtype) - self.lowest) / self.span
        return (similarity - target).square().repeat_interleave(2)


def cosines(vectors: Tensor) -> Tensor:
    """Cosines (R, R) between all rows of floating `vectors` (R, D)."""
    directions = F.normalize(vectors, dim=-1)
    return directions @ directions.mT


def divergence(student: Tensor, teacher: Tensor, candidates: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of each row (R,), over the `candidates` (R, R) bool of floating (R, R).

    A row without candidates has 0, and no gradient.
    """
    log_q, log_p = (_log_softmax(side, candidates) for side in (student, teacher))
    return (log_p.exp() * (log_p - log_q)).where(candidates, 0.0).sum(1)


def _pair_loss(logits: Tensor, candidates: Tensor) -> Tensor:
    """-log of the probability (R,) of each row's partner, from logits (R, R)."""
    row = torch.arange(len(logits), device=logits.device)
    return -_log_softmax(logits, candidates)[row, row ^ 1]


def _log_softmax(logits: Tensor, candidates: Tensor) -> Tensor:
    """Log-softmax over the candidates; finite elsewhere, so that no gradient is NaN."""
    lowest = torch.finfo(logits.dtype).min / 4
    return logits.masked_fill(~candidates, lowest).log_softmax(-1)
