"""Losses of sentence encoders: what a vector of a text is to be, or how vectors are to lie to each other.

Every text is a row; the texts of a pair lie in rows 2 i and 2 i + 1.
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
    """Between the student's vectors, behind a projection where one is needed, and the teacher's (2004.09813)."""

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
    """Raises UserError where the widths differ and nothing brings them together."""
    own, wanted = builder.outputs, builder.teacher_outputs(spec.teacher)
    if spec.projection == "none" and own != wanted:
        found = f"the student's vectors have {own} numbers and the teacher's {wanted}"
        raise builder.refuse(f"{found} (accepted: auto or linear, or a student of the same width)", "projection")
    if spec.projection == "none" or (spec.projection == "auto" and own == wanted):
        return None
    key = f"{spec.name}-projection-{spec.teacher or 'teacher'}"
    return builder.part(key, lambda: nn.Linear(own, wanted))


class SimilarityMatrixTerm:
    """Each row's cosines to all other rows, as distributions (2101.04731) or as they are; a lone row has none: 0."""

    def __init__(self, spec: SimilarityMatrix) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = (cosines(side) for side in (at_least_float32(inputs.student), teacher_logits(inputs)))
        seen = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
        if self.spec.compare == "mse":
            return (student - teacher).square().where(seen, 0.0).sum(1) / seen.sum(1).clamp(min=1)
        warmth = self.spec.teacher_temperature or self.spec.temperature
        return divergence(student / self.spec.temperature, teacher / warmth, seen)


class ContrastiveTerm:
    """InfoNCE over the texts of the batch (1705.00652), with the pairs or with a teacher's likelihoods as labels.

    Rows of anchors carry the loss. Where only the first texts of the pairs are anchors, the loss of each stands in both
    rows of its pair, so that the mean over the rows is the mean over the anchors.
    """

    def __init__(self, spec: Contrastive) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits = cosines(at_least_float32(inputs.student)) / self.spec.temperature
        seen = self._seen(inputs.labels[:, TEXT])
        losses = self._taught(inputs, logits, seen) if self.spec.target == "teacher" else _found(logits, seen)
        return losses if self.spec.anchors == "both" else losses[0::2].repeat_interleave(2)

    def _taught(self, inputs: LossInputs, logits: Tensor, seen: Tensor) -> Tensor:
        warmth = self.spec.teacher_temperature or self.spec.temperature
        return divergence(logits, cosines(teacher_logits(inputs)) / warmth, seen)

    def _seen(self, texts: Tensor) -> Tensor:
        """(R, R) bool: which rows each row looks through; `texts` (R,) are numbers that equal texts share."""
        place = torch.arange(len(texts), device=texts.device)
        partner = place ^ 1
        same = texts.unsqueeze(1) == texts.unsqueeze(0)
        seen = ~(same | same[partner])
        if self.spec.others == "opposite":
            seen = seen & (place.unsqueeze(1) % 2 != place.unsqueeze(0) % 2)
        return seen | (partner.unsqueeze(1) == place)


class PairScoreTerm:
    """Squared difference between a pair's cosine and its score (1908.10084); both rows of the pair have it."""

    def __init__(self, spec: PairScore) -> None:
        self.lowest, self.span = spec.lowest, spec.highest - spec.lowest

    def __call__(self, inputs: LossInputs) -> Tensor:
        vectors = at_least_float32(inputs.student)
        found = F.cosine_similarity(vectors[0::2], vectors[1::2])
        wanted = (inputs.labels[0::2, SCORE].to(found.dtype) - self.lowest) / self.span
        return (found - wanted).square().repeat_interleave(2)


def cosines(vectors: Tensor) -> Tensor:
    """(R, R) of every two of the rows (R, D)."""
    directions = F.normalize(vectors, dim=-1)
    return directions @ directions.mT


def divergence(student: Tensor, teacher: Tensor, seen: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of each row (R,), over the entries that are `seen` (R, R) bool.

    A row that sees nothing has 0, without a gradient.
    """
    log_q, log_p = (_log_softmax(side, seen) for side in (student, teacher))
    return (log_p.exp() * (log_p - log_q)).where(seen, 0.0).sum(1)


def _found(logits: Tensor, seen: Tensor) -> Tensor:
    """-log of the probability that each row finds its partner."""
    place = torch.arange(len(logits), device=logits.device)
    return -_log_softmax(logits, seen)[place, place ^ 1]


def _log_softmax(logits: Tensor, seen: Tensor) -> Tensor:
    """Over the entries that are seen; finite elsewhere, so that no gradient is NaN."""
    lowest = torch.finfo(logits.dtype).min / 4
    return logits.masked_fill(~seen, lowest).log_softmax(-1)
