"""AutoDistil (2201.12507): relations between tokens within queries, keys and values match the teacher's."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.features import AttentionRelation, Projections
from app.recipe.losses.taps import Tap
from worker.kernels.log_probs import FLOOR
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.activations import describe, of_student, of_teacher
from worker.losses.features.adapters import require_kind, require_same_tokens


class AttentionRelationTerm:
    """Sum over queries, keys and values of the distance between student's and teacher's relations.

    `kl` is a mean over relation heads and over all tokens of valid rows that aren't padding, so a row weighs as much as
    its number of tokens; `mse` is a mean over all entries of a row.
    """

    def __init__(self, spec: AttentionRelation, builder: LossBuilder) -> None:
        self.spec = spec
        shapes = {
            "student": _shapes(spec.layer.student, {tap: builder.student(tap) for tap in spec.taps().student}),
            "teacher": _shapes(
                spec.layer.teacher, {tap: builder.teacher(tap, spec.teacher) for tap in spec.taps().teacher}
            ),
        }
        for side, several in shapes.items():
            for shape in several:
                self._check(builder, shape, f"layer.{side}")
        require_same_tokens(builder, shapes["student"][0], shapes["teacher"][0], spec.teacher, "layer")

    def _check(self, builder: LossBuilder, shape: torch.Size, field: str) -> None:
        require_kind(builder, shape, (3,), field)
        if shape[2] < self.spec.relation_heads:
            found = f"{self.spec.relation_heads} is more than the width of {describe(shape)}"
            raise builder.refuse(f"{found}; accepted: at most {shape[2]}", "relation_heads")

    def __call__(self, inputs: LossInputs) -> Tensor:
        layer, heads = self.spec.layer, self.spec.relation_heads
        students = _split(layer.student, {tap: of_student(inputs, tap) for tap in layer.student.taps()})
        teachers = _split(layer.teacher, {tap: of_teacher(inputs, tap) for tap in layer.teacher.taps()})
        pairs = [(relations(s, heads), relations(t, heads)) for s, t in zip(students, teachers, strict=True)]
        if self.spec.relation == "mse":
            return torch.stack([(s - t).square().mean((1, 2, 3)) for s, t in pairs]).sum(0)
        tokens = inputs.features.student_tokens
        if tokens is None:
            tokens = torch.ones(students[0].shape[:2], dtype=torch.bool, device=students[0].device)
        mean = inputs.features.tokens_per_row
        return torch.stack([relation_kl(s, t, tokens, inputs.valid, mean) for s, t in pairs]).sum(0)


def relations(states: Tensor, heads: int) -> Tensor:
    """Scaled dot products (B, R, S, S) between the tokens of floating `states` (B, S, D), in R heads of width
    D // R."""
    width = states.shape[-1] // heads
    rows, tokens, _ = states.shape
    split = states[..., : heads * width].reshape(rows, tokens, heads, width).transpose(1, 2)
    return split @ split.mT / math.sqrt(width)


def relation_kl(
    student: Tensor, teacher: Tensor, tokens: Tensor, valid: Tensor | None, tokens_per_row: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) of each row (B,), from floating relations (B, R, S, S).

    `tokens` (B, S) bool: tokens that aren't padding; `valid` (B,) bool: rows that count; `tokens_per_row`: see
    `Features`.
    """
    padding = ~tokens[:, None, None, :]
    log_q, log_p = (F.log_softmax(side.masked_fill(padding, FLOOR), dim=-1) for side in (student, teacher))
    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean(1)
    summed = kl.where(tokens, 0.0).sum(-1)
    if tokens_per_row is not None:
        return summed / tokens_per_row
    counted = tokens if valid is None else tokens & valid.unsqueeze(-1)
    rows = len(tokens) if valid is None else valid.sum()
    return summed * rows / counted.sum().clamp(min=1)


def _split(projections: Projections, features: Mapping[Tap, Tensor]) -> list[Tensor]:
    """Queries, keys and values, each (B, S, D)."""
    if projections.qkv:
        return list(features[projections.qkv].chunk(3, dim=-1))
    return [features[tap] for tap in projections.taps()]


def _shapes(projections: Projections, shapes: Mapping[Tap, torch.Size]) -> list[torch.Size]:
    """Shapes of queries, keys and values; one joint projection is divided by three."""
    if projections.qkv:
        *front, width = shapes[projections.qkv]
        return [torch.Size((*front, width // 3))] * 3
    return [shapes[tap] for tap in projections.taps()]
