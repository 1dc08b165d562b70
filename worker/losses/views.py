"""Losses of two augmented views of each image, which are rows 2 i and 2 i + 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses.views import NtXent
from worker.losses.anchors import by_anchor
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.embeddings import loss_of_finding
from worker.tensors import at_least_float32


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
    """Loss of each view (R,), from floating `vectors` (R, D), in memory that is linear in the rows; a single pair has a
    loss and a gradient of 0."""
    directions, row = F.normalize(vectors, dim=-1), torch.arange(len(vectors), device=vectors.device)

    def losses(part: slice) -> Tensor:
        logits = directions[part] @ directions.mT / temperature
        return loss_of_finding(row[part] ^ 1, logits, row != row[part].unsqueeze(1))

    return by_anchor(losses, len(vectors), len(vectors))
