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
from worker.losses.anchors import by_anchor
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
        sides = [F.normalize(side, dim=-1) for side in (at_least_float32(inputs.student), teacher_logits(inputs))]
        row = torch.arange(len(inputs.student), device=inputs.student.device)

        def losses(part: slice) -> Tensor:
            candidates = row != row[part].unsqueeze(1)
            if inputs.valid is not None:
                candidates = candidates & inputs.valid
            student, teacher = (directions[part] @ directions.mT for directions in sides)
            return self._of(student, teacher, candidates)

        return by_anchor(losses, len(row), len(row))

    def _of(self, student: Tensor, teacher: Tensor, candidates: Tensor) -> Tensor:
        """Losses (n,) from floating cosines (n, R) and `candidates` (n, R) bool."""
        if self.spec.compare == "mse":
            return (student - teacher).square().where(candidates, 0.0).sum(1) / candidates.sum(1).clamp(min=1)
        teacher_temperature = self.spec.teacher_temperature or self.spec.temperature
        return divergence(student / self.spec.temperature, teacher / teacher_temperature, candidates)


class ContrastiveTerm:
    """InfoNCE over the texts of the batch (1705.00652), with the pairs or a teacher's probabilities as targets.

    Rows of anchors have the loss. If only the first texts of the pairs are anchors, both rows of a pair have its
    anchor's loss, so that the mean over the rows is the mean over the anchors. Of lists the queries are the anchors,
    and all rows of a sample have its query's loss.
    """

    def __init__(self, spec: Contrastive) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        size = inputs.rows_per_sample if inputs.rows_per_sample > PAIR else 1
        student = F.normalize(at_least_float32(inputs.student), dim=-1)
        teacher = F.normalize(teacher_logits(inputs), dim=-1) if self.spec.target == "teacher" else None
        anchor = torch.arange(len(student) // size, device=student.device)
        partner = anchor ^ 1 if size == 1 else anchor * size + 1

        def losses(part: slice) -> Tensor:
            logits = student[::size][part] @ student.mT / self.spec.temperature
            candidates = self._candidates(inputs.labels, size, part)
            if teacher is None:
                return loss_of_finding(partner[part], logits, candidates)
            teacher_temperature = self.spec.teacher_temperature or self.spec.temperature
            return divergence(logits, teacher[::size][part] @ teacher.mT / teacher_temperature, candidates)

        found = by_anchor(losses, len(anchor), len(student))
        if size > 1 or self.spec.anchors == "both":
            return found.repeat_interleave(size)
        return found[0::2].repeat_interleave(2)

    def _candidates(self, labels: Tensor, size: int, part: slice) -> Tensor:
        """(n, R) bool: the candidates of some anchors, which are rows of pairs, or the queries of samples of `size`
        rows."""
        if size > 1:
            return list_candidates(labels, size, part, queries=self.spec.others == "all")
        texts, row = labels[:, TEXT], torch.arange(len(labels), device=labels.device)
        partner = row[part].unsqueeze(1) ^ 1
        candidates = (texts != texts[part].unsqueeze(1)) & (texts != texts[partner])
        if self.spec.others == "opposite":
            candidates = candidates & (row % 2 == partner % 2)
        return candidates | (row == partner)


class PairScoreTerm:
    """Squared difference between a pair's cosine and its score (1908.10084), in both rows of the pair."""

    def __init__(self, spec: PairScore) -> None:
        self.lowest, self.span = spec.lowest, spec.highest - spec.lowest

    def __call__(self, inputs: LossInputs) -> Tensor:
        vectors = at_least_float32(inputs.student)
        similarity = F.cosine_similarity(vectors[0::2], vectors[1::2])
        target = (inputs.labels[0::2, SCORE].to(similarity.dtype) - self.lowest) / self.span
        return (similarity - target).square().repeat_interleave(2)


def query_cosines(vectors: Tensor, size: int) -> Tensor:
    """Cosines (Q, R) of the queries with all rows of floating `vectors` (R, D), in samples of `size` rows."""
    directions = F.normalize(vectors, dim=-1)
    return directions[::size] @ directions.mT


def own_texts(labels: Tensor, size: int, samples: slice = slice(None)) -> Tensor:
    """Rows (Q, R) bool with the same text as a sample's query or one of its positives, for some samples of labels
    (R, 3)."""
    texts, roles = (column.view(-1, size)[samples] for column in (labels[:, TEXT], labels[:, ROLE]))
    found = torch.zeros(len(texts), len(labels), dtype=torch.bool, device=labels.device)
    for place in range(size):  # one after the other, so that memory is that of the result
        known = (roles[:, place] == QUERY) | (roles[:, place] == POSITIVE)
        found |= (texts[:, place, None] == labels[:, TEXT]) & known.unsqueeze(1)
    return found


def list_candidates(labels: Tensor, size: int, samples: slice, *, queries: bool = False) -> Tensor:
    """Rows (Q, R) bool that the first positive of each of some samples is chosen from: itself, and all positives and
    negatives of the batch, with `queries` the other samples' queries too, whose texts are neither its query nor its
    positives."""
    roles = labels[:, ROLE]
    there = (roles != PADDING) if queries else (roles != PADDING) & (roles != QUERY)
    found = there & ~own_texts(labels, size, samples)
    sample = torch.arange(len(found), device=labels.device)
    return found.index_put((sample, (sample + samples.start) * size + 1), torch.ones_like(sample, dtype=torch.bool))


def divergence(student: Tensor, teacher: Tensor, candidates: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of each row (R,), over the `candidates` (R, K) bool of floating (R, K).

    A row without candidates has 0, and no gradient.
    """
    log_q, log_p = (log_softmax_over(side, candidates) for side in (student, teacher))
    return (log_p.exp() * (log_p - log_q)).where(candidates, 0.0).sum(1)


def loss_of_finding(wanted: Tensor, logits: Tensor, candidates: Tensor) -> Tensor:
    """-log of the probability (A,) of each anchor's `wanted` row (A,) int64 among its `candidates` (A, R) bool, from
    floating logits (A, R)."""
    return -log_softmax_over(logits, candidates).gather(1, wanted.unsqueeze(1)).squeeze(1)


def log_softmax_over(logits: Tensor, candidates: Tensor) -> Tensor:
    """Log-softmax (A, R) over the candidates (A, R) bool of floating logits (A, R); finite elsewhere, so that no
    gradient is NaN."""
    lowest = torch.finfo(logits.dtype).min / 4
    return logits.masked_fill(~candidates, lowest).log_softmax(-1)
