"""Local mining of CFCD (2308.04008): local features of images of one class match, and differ from those of others.

B images, K local features of each, D channels, N negatives. Vectors have the length 1, so that a squared distance is
2 - 2 times the cosine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import CfcdLocal
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.class_vectors import require_classes_as_labels
from worker.losses.embeddings import query_cosines
from worker.losses.features.activations import of_student
from worker.tensors import at_least_float32

LEAST_LENGTH = 1e-6
"""A shorter vector, as of a position where no channel is active, is 0 and has no gradient: it would have no bound."""


class LocalFeatures(NamedTuple):
    """Local features of images."""

    vectors: Tensor
    """(B, K, D) floating, of length 1."""
    attention: Tensor
    """(B, K) floating: their lengths before."""


class Tuples(NamedTuple):
    """The images that each image of a batch is compared with, as rows of the batch."""

    positive: Tensor
    """(B,) int64: one of its class."""
    negatives: Tensor
    """(B, N) int64: those of other classes with the most similar vectors."""
    complete: Tensor
    """(B, N) bool: whether there are both, the positive and this negative."""


class CfcdLocalTerm:
    """The local loss of each image as a query, from its tuple in the batch; needs whole batches."""

    def __init__(self, spec: CfcdLocal, builder: LossBuilder) -> None:
        self.spec = spec
        require_classes_as_labels(builder)
        shape = builder.student(spec.feature)
        if len(shape) != 4 or shape[2] * shape[3] < 2:
            found = f"the student's feature at {spec.feature.path!r} has shape {tuple(shape[1:])}"
            raise builder.refuse(f"{found}; accepted: a map (C, H, W) of two positions or more", "feature")

    def __call__(self, inputs: LossInputs) -> Tensor:
        local = local_features(of_student(inputs, self.spec.feature), self.spec.features)
        vectors = at_least_float32(inputs.student).detach()
        found = tuples(vectors, inputs.labels, self.spec.negatives, inputs.valid)
        partners = LocalFeatures(*(part[found.positive] for part in local))
        return mined(local.vectors, partners, local.vectors, found, self.spec)


def local_features(maps: Tensor, most: int) -> LocalFeatures:
    """The positions with the longest vectors, at most `most` of each image, of floating `maps` (B, C, H, W)."""
    positions = maps.flatten(2).mT
    lengths = positions.detach().norm(dim=-1)
    attention, places = lengths.topk(min(most, lengths.shape[1]))
    chosen = take_local(positions, places).where(attention.unsqueeze(-1) > LEAST_LENGTH, 0.0)
    return LocalFeatures(F.normalize(chosen, dim=-1), attention)


def tuples(vectors: Tensor, labels: Tensor, negatives: int, valid: Tensor | None = None) -> Tuples:
    """The tuple of each image with floating `vectors` (B, D) and `labels` (B,) int64: the next image of its class, and
    at most so many `negatives`; only of those that are `valid` (B,) bool."""
    same, row = labels.unsqueeze(1) == labels, torch.arange(len(labels), device=labels.device)
    known = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    partners = same & known & known.unsqueeze(1) & (row != row.unsqueeze(1))
    ahead = ((row - row.unsqueeze(1)) % len(row)).where(partners, len(row))
    similar = query_cosines(vectors, 1).masked_fill(same | ~known, -torch.inf)
    values, places = similar.topk(min(negatives, len(row)))
    return Tuples(ahead.argmin(1), places, values.isfinite() & partners.any(1, keepdim=True))


def mined(queries: Tensor, positives: LocalFeatures, others: Tensor, found: Tuples, spec: CfcdLocal) -> Tensor:
    """Loss of each query (B,), from local features (B, K, D) of the queries, those of their positives, and those (R, K,
    D) of the images that `found.negatives` counts."""
    matched, partner = matches(queries.detach(), positives, spec.ratio)
    attracted = distances(queries, take_local(positives.vectors, partner))
    loss = queries.new_zeros(len(queries))
    for place in range(found.negatives.shape[1]):  # one after the other, so that memory is that of one negative
        negative = others[found.negatives[:, place]]
        nearest = (queries.detach() @ negative.detach().mT).argmax(-1)
        hinge = (attracted - distances(queries, take_local(negative, nearest)) + spec.margin).clamp(min=0.0)
        loss = loss + hinge.where(matched & found.complete[:, place].unsqueeze(1), 0.0).sum(1)
    return loss


def matches(queries: Tensor, positives: LocalFeatures, ratio: float) -> tuple[Tensor, Tensor]:
    """Whether each local feature of `queries` (B, K, D) has a match, (B, K) bool, and the number of the nearest one of
    the positive, (B, K) int64. A match is nearest in both directions, at most `ratio` times as far away as the second,
    and among the half of the positive's local features with the most attention."""
    vectors, attention = positives.vectors.detach(), positives.attention
    similar = queries @ vectors.mT
    best, places = similar.topk(2, dim=-1)
    partner = places[..., 0]
    mutual = similar.argmax(1).gather(1, partner) == torch.arange(queries.shape[1], device=queries.device)
    near, second = (2.0 - 2.0 * best).clamp(min=0.0).unbind(-1)
    half = attention.topk(attention.shape[1] // 2, dim=-1).indices
    attended = torch.zeros_like(attention, dtype=torch.bool).scatter(1, half, True)
    return mutual & (near <= ratio**2 * second) & attended.gather(1, partner), partner


def take_local(vectors: Tensor, places: Tensor) -> Tensor:
    """Local features (B, K, D) at `places` (B, K) int64 of `vectors` (B, L, D), floating."""
    return vectors.gather(1, places.unsqueeze(-1).expand(-1, -1, vectors.shape[2]))


def distances(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances (B, K) of vectors (B, K, D) of length 1, floating."""
    return 2.0 - 2.0 * (one * other).sum(-1)
