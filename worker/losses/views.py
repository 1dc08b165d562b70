"""Losses of two augmented views of each image, which are rows 2 i and 2 i + 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.recipe.losses.views import NtXent
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.embeddings import pair_loss
from worker.tensors import at_least_float32

AT_ONCE = 2**20
"""Cosines that are computed at a time."""


class NtXentTerm:
    """NT-Xent over all views of the batch (2002.05709), after a projection; needs whole batches."""

    def __init__(self, spec: NtXent, builder: LossBuilder) -> None:
        self.temperature, self.projection = spec.temperature, _projection(spec, builder)

    def __call__(self, inputs: LossInputs) -> Tensor:
        vectors = at_least_float32(inputs.student)
        return nt_xent(vectors if self.projection is None else self.projection(vectors), self.temperature)


def _projection(spec: NtXent, builder: LossBuilder) -> nn.Module | None:
    width, hidden = builder.outputs, spec.hidden or builder.outputs
    if spec.projection == "none":
        return None
    if spec.projection == "linear":
        return builder.part(f"{spec.name}-{spec.dimensions}", lambda: nn.Linear(width, spec.dimensions))
    return builder.part(
        f"{spec.name}-{hidden}-{spec.dimensions}",
        lambda: nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, spec.dimensions)),
    )


def nt_xent(vectors: Tensor, temperature: float) -> Tensor:
    """Loss of each view (R,), from floating `vectors` (R, D). Cosines are computed some anchors at a time, and again
    for the gradient, so that memory is linear in the rows; a single pair has a loss and a gradient of 0."""
    directions = F.normalize(vectors, dim=-1)
    anchors = max(1, AT_ONCE // max(len(vectors), 1))
    if len(vectors) <= anchors:
        return _of_anchors(directions, directions, 0, temperature)
    parts = [
        checkpoint(_of_anchors, part, directions, number * anchors, temperature, use_reentrant=False)
        for number, part in enumerate(torch.split(directions, anchors))
    ]
    return torch.cat(parts)


def _of_anchors(anchors: Tensor, directions: Tensor, first: int, temperature: float) -> Tensor:
    """Losses (A,) of the unit vectors `anchors` (A, D), which are the rows from `first` on of `directions` (R, D)."""
    column = torch.arange(len(directions), device=directions.device)
    others = column != column[first : first + len(anchors)].unsqueeze(1)
    return pair_loss(anchors @ directions.mT / temperature, others, first)
