"""Losses of sentence encoders, on embeddings or on similarities between embeddings.

Every text is a row; the texts of a pair are rows 2 i and 2 i + 1, and a list is n rows: its query, its positives, its
negatives, and padding, which counts nowhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses.embeddings import Contrastive, EmbeddingDistance, PairScore, SimilarityMatrix
from worker.data.pairs import PADDING, POSITIVE, QUERY, ROLE, SCORE, TEXT
from worker.losses.base import LossInputs, teacher_logits
from worker.losses.builder import LossBuilder
from worker.tensors import at_least_float32

PAIR = 2
"""Rows of a pair."""


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
        if inputs.valid is not None:
            candidates = candidates & inputs.valid
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
        if inputs.rows_per_sample > PAIR:
            return self._of_lists(inputs)
        logits = cosines(at_least_float32(inputs.student)) / self.spec.temperature
        candidates = self._candidates(inputs.labels[:, TEXT])
        losses = (
            self._teacher_loss(inputs, logits, candidates)
            if self.spec.target == "teacher"
            else _pair_loss(logits, candidates)
        )
        return losses if self.spec.anchors == "both" else losses[0::2].repeat_interleave(2)

    def _of_lists(self, inputs: LossInputs) -> Tensor:
        """A query's loss, in all rows of its sample; candidates are the rows of `list_candidates`."""
        size = inputs.rows_per_sample
        logits = query_cosines(at_least_float32(inputs.student), size) / self.spec.temperature
        candidates = list_candidates(inputs.labels, size, queries=self.spec.others == "all")
        if self.spec.target == "teacher":
            teacher = query_cosines(teacher_logits(inputs), size)
            losses = divergence(logits, teacher / (self.spec.teacher_temperature or self.spec.temperature), candidates)
        else:
            sample = torch.arange(len(logits), device=logits.device)
            losses = -log_softmax_over(logits, candidates)[sample, sample * size + 1]
        return losses.repeat_interleave(size)

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


def query_cosines(vectors: Tensor, size: int) -> Tensor:
    """Cosines (Q, R) of the queries with all rows of floating `vectors` (R, D), in samples of `size` rows."""
    directions = F.normalize(vectors, dim=-1)
    return directions[::size] @ directions.mT


def own_texts(labels: Tensor, size: int) -> Tensor:
    """Rows (Q, R) bool with the same text as a sample's query or one of its positives, for labels (R, 3)."""
    texts, roles = (column.view(-1, size) for column in (labels[:, TEXT], labels[:, ROLE]))
    found = torch.zeros(len(texts), len(labels), dtype=torch.bool, device=labels.device)
    for place in range(size):  # one after the other, so that memory is that of the result
        known = (roles[:, place] == QUERY) | (roles[:, place] == POSITIVE)
        found |= (texts[:, place, None] == labels[:, TEXT]) & known.unsqueeze(1)
    return found


def list_candidates(labels: Tensor, size: int, *, queries: bool = False) -> Tensor:
    """Rows (Q, R) bool that a sample's first positive is chosen from: itself, and all positives and negatives of the
    batch, with `queries` the other samples' queries too, whose texts are neither its query nor its positives."""
    roles = labels[:, ROLE]
    there = (roles != PADDING) if queries else (roles != PADDING) & (roles != QUERY)
    found = there & ~own_texts(labels, size)
    sample = torch.arange(len(found), device=labels.device)
    return found.index_put((sample, sample * size + 1), torch.ones_like(sample, dtype=torch.bool))


def divergence(student: Tensor, teacher: Tensor, candidates: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of each row (R,), over the `candidates` (R, K) bool of floating (R, K).

    A row without candidates has 0, and no gradient.
    """
    log_q, log_p = (log_softmax_over(side, candidates) for side in (student, teacher))
    return (log_p.exp() * (log_p - log_q)).where(candidates, 0.0).sum(1)


def _pair_loss(logits: Tensor, candidates: Tensor) -> Tensor:
    """-log of the probability (R,) of each row's partner, from logits (R, R)."""
    row = torch.arange(len(logits), device=logits.device)
    return -log_softmax_over(logits, candidates)[row, row ^ 1]


def log_softmax_over(logits: Tensor, candidates: Tensor) -> Tensor:
    """Log-softmax of floating logits (N, M) over the candidates (N, M) bool; finite elsewhere, so that no gradient is
    NaN."""
    lowest = torch.finfo(logits.dtype).min / 4
    return logits.masked_fill(~candidates, lowest).log_softmax(-1)
