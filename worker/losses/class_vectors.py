"""Losses of embeddings with classes as labels: cosines with a weight vector of each class, which is trained."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses.class_vectors import Cfcd, ClassVectorTerm, NormFace
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.tensors import at_least_float32

NEAREST = 1e-7
"""Cosines are kept this far from 1 and -1 before their angle is computed, whose gradient has no bound there."""
LEAST_SCALE, SURE = 32.0, 9_999_999.0
"""Of MadaCos: the smallest scale, and the ratio of probabilities that a cosine of 1 has to reach."""
EPS = 1e-12
"""Least length that a vector is divided by."""


class ClassVectors(nn.Module):
    """Weight vectors (K, D) of classes, drawn from a normal distribution: only their directions count."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width))


class LearnedScale(nn.Module):
    """A positive scale: the initial one times exp(`log_factor`), which starts at 0."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.log_factor = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        return self.initial * self.log_factor.exp()


class NormFaceTerm:
    """Cross-entropy of scaled cosines (1704.06369); each row by itself."""

    def __init__(self, spec: NormFace, builder: LossBuilder) -> None:
        self.spec, self.vectors = spec, class_vectors(spec, builder)
        self.scale = (
            builder.part(f"{spec.name}-scale-{spec.scale:g}".replace(".", "_"), lambda: LearnedScale(spec.scale))
            if spec.learn_scale
            else None
        )

    def __call__(self, inputs: LossInputs) -> Tensor:
        found = cosines_with(at_least_float32(inputs.student), self.vectors.weight, self.spec.eps)
        scale = self.spec.scale if self.scale is None else self.scale()
        logits = scale * with_margin(found, inputs.labels, self.spec.margin, self.spec.used_margin)
        return F.cross_entropy(logits, inputs.labels, reduction="none")


class MadaCos(NamedTuple):
    """Scale and margin of a batch, floating scalars without gradient."""

    median: Tensor
    """Lower median of the cosines with the own class."""
    scale: Tensor
    log_mass: Tensor
    """Logarithm of B, the other classes' sum of exponentials."""
    margin: Tensor


class CfcdTerm:
    """Cross-entropy of cosines with the scale and margin of MadaCos (2308.04008); needs whole batches. Ignored rows
    don't count for either."""

    def __init__(self, spec: Cfcd, builder: LossBuilder) -> None:
        self.spec, self.vectors = spec, class_vectors(spec, builder)

    def __call__(self, inputs: LossInputs) -> Tensor:
        found = cosines_with(at_least_float32(inputs.student), self.vectors.weight)
        chosen = slice(None) if inputs.valid is None or not bool(inputs.valid.any()) else inputs.valid
        batch = madacos(self.spec, found.detach()[chosen], inputs.labels[chosen])
        return F.cross_entropy(madacos_logits(found, inputs.labels, batch), inputs.labels, reduction="none")


def madacos(spec: Cfcd, cosines: Tensor, labels: Tensor) -> MadaCos:
    """Scale and margin from floating `cosines` (B, K) of at least one row, and its `labels` (B,) int64."""
    own = cosines.gather(1, labels.unsqueeze(1)).squeeze(1)
    median, place = own.median(0)
    least = torch.finfo(own.dtype).tiny
    wanted = math.log(SURE * (1.0 - spec.alpha) / spec.alpha) / (1.0 - median).clamp(min=least)
    scale = wanted.clamp(min=LEAST_SCALE).clamp(max=spec.most_scale)
    others = (scale * cosines).scatter(1, labels.unsqueeze(1), -torch.inf).logsumexp(1)
    log_mass = {
        "default": others[place],
        "mean": others.logsumexp(0) - math.log(len(others)),
        "median": others.median(),
    }[spec.mass]
    margin = median - (log_mass + math.log(spec.alpha / (1.0 - spec.alpha))) / scale
    return MadaCos(median, scale, log_mass, margin.clamp(min=0.0))


def madacos_logits(cosines: Tensor, labels: Tensor, batch: MadaCos) -> Tensor:
    """Logits (B, K) from floating `cosines` (B, K) and `labels` (B,) int64."""
    place = labels.unsqueeze(1)
    return batch.scale * cosines.scatter(1, place, cosines.gather(1, place) - batch.margin)


def class_vectors(spec: ClassVectorTerm, builder: LossBuilder) -> ClassVectors:
    """The weight vectors of a term, which others with the same name share; raises UserError if the labels are no
    classes."""
    require_classes_as_labels(builder)
    made = builder.part(f"{spec.name}-vectors", lambda: ClassVectors(builder.classes, builder.outputs))
    assert isinstance(made, ClassVectors)  # nothing else has this name
    return made


def require_classes_as_labels(builder: LossBuilder) -> None:
    """Raise UserError (`invalid_job`) if the labels are no classes."""
    if not builder.classes:
        raise builder.refuse("its labels are no classes; accepted: a task with one class per image", "kind")


def cosines_with(vectors: Tensor, weights: Tensor, eps: float = EPS) -> Tensor:
    """Cosines (B, K) of `vectors` (B, D) with the class `weights` (K, D), floating."""
    return F.normalize(vectors, dim=-1, eps=eps) @ F.normalize(weights, dim=-1, eps=eps).to(vectors.dtype).mT


def with_margin(cosines: Tensor, labels: Tensor, margin: str, size: float) -> Tensor:
    """Cosines (B, K) with a margin at the label's class; `labels` (B,) int64."""
    if margin == "none":
        return cosines
    own = cosines.gather(1, labels.unsqueeze(1))
    if margin == "cosface":
        return cosines.scatter(1, labels.unsqueeze(1), own - size)
    angle = own.clamp(-1.0 + NEAREST, 1.0 - NEAREST).arccos()
    return cosines.scatter(1, labels.unsqueeze(1), (angle + size).cos())
