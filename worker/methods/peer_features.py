"""Inheritance and exploration between two students that learn together (IE-KD, arXiv 2107.00181)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.recipe.losses.features import InheritanceExploration
from app.recipe.losses.taps import Tap
from app.recipe.losses.weights import weight_at
from app.recipe.methods.base import FIELD
from worker.data.batches import Batch
from worker.data.randomness import derive_seed
from worker.errors import UserError
from worker.losses.features.activations import describe, same_size
from worker.losses.features.inheritance import Encoders, explore_loss, inherit_loss
from worker.students.model import Model
from worker.tensors import at_least_float32
from worker.training.stages import dry_shapes, open_recorder

Codes = tuple[Tensor, Tensor]
"""Codes (B, F, H, W) of the two halves of a feature: of the one that inherits, and of the one that explores."""


class PeerFeatures:
    """Reads the features of two students, the job's first, and compares them; each has encoders of its own."""

    def __init__(self, spec: InheritanceExploration, models: Sequence[Model], samples: Batch, seed: int) -> None:
        """`samples` show the shapes of the features. Raises UserError (`invalid_job`) for a feature that is no map of
        two or more channels."""
        self._spec, self._taps = spec, (spec.pair.student, spec.pair.teacher)
        fields = [f"{FIELD}.features.pair.{side}" for side in ("student", "teacher")]
        whose = ("the student", "the other student")
        places = list(zip(models, self._taps, fields, whose, strict=True))
        self.recorders = [open_recorder(model, {tap: field}, side) for model, tap, field, side in places]
        widths = [
            _channels(dry_shapes(model, recorder, samples, field)[tap], field)
            for (model, tap, field, _), recorder in zip(places, self.recorders, strict=True)
        ]
        factors = spec.factors or max(1, widths[0] // 2)
        self.encoders: list[Encoders] = []
        """Of both students, in their order."""
        for number, (width, model) in enumerate(zip(widths, models, strict=True)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "peer-encoders", number))
                self.encoders.append(Encoders(width, factors).to(next(model.parameters()).device))

    def weight(self, epoch: float, epochs: float) -> float:
        """Factor of the loss after `epoch` of `epochs`, both with fraction."""
        return weight_at(self._spec.weight, epoch, epochs)

    def encode(self, number: int, features: Mapping[Tap, Tensor], valid: Tensor) -> Codes:
        """Codes of student `number`; `valid` (B,) bool: rows that count."""
        codes: Codes = self.encoders[number](at_least_float32(features[self._taps[number]]), valid)
        return codes

    def loss(self, own: Codes, other: Codes, valid: Tensor) -> Tensor:
        """Loss of each row (B,): how far the inheriting half is from the other student's, less how far the exploring
        one is; the other's codes are constants."""
        (inherited, explored), sources = own, [code.detach() for code in other]
        like = inherit_loss(self._spec, *same_size(inherited, sources[0]), valid)
        return like + explore_loss(self._spec, *same_size(explored, sources[1]), valid)


def _channels(shape: torch.Size, field: str) -> int:
    """Raises UserError (`invalid_job`)."""
    if len(shape) != 4 or shape[1] < 2:
        accepted = "maps (B, C, H, W) of two channels or more"
        raise UserError("invalid_job", f"{field} gives {describe(shape)}; accepted: {accepted}", field)
    return shape[1]
