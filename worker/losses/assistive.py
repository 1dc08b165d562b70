"""KD-Loss with a tolerant and a tough teacher (2111.07047), for landmarks and other lists of numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.losses.numbers import Assistive
from worker.losses.base import LossInputs
from worker.tensors import at_least_float32


class AssistiveParts(NamedTuple):
    """What the loss of a row is made of, each (B,) and without its weight."""

    label: Tensor
    tolerant: Tensor
    tough: Tensor


class AssistiveTerm:
    """A main part with the labels, and one assistive part for each teacher; outputs and labels (B, C).

    Every choice by a sign has no gradient, and neither has a teacher's reflected answer, though it depends on the
    student's side of the label. At the label itself the gradient is 0.
    """

    def __init__(self, spec: Assistive) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        parts, spec = self.parts(inputs), self.spec
        return spec.label_weight * parts.label + spec.tolerant_weight * parts.tolerant + spec.tough_weight * parts.tough

    def parts(self, inputs: LossInputs) -> AssistiveParts:
        """Raises ValueError when a teacher's outputs are missing."""
        outputs, spec = at_least_float32(inputs.student), self.spec
        label = inputs.labels.to(outputs.dtype)
        tolerant, tough = (reflected(outputs, label, _answers(inputs, name)) for name in (spec.tolerant, spec.tough))
        return AssistiveParts(
            main(outputs, label, tolerant).mean(-1),
            assist(outputs, label, tolerant, spec.tolerant_outer, spec.tolerant_inner, spec.near).mean(-1),
            assist(outputs, label, tough, spec.tough_outer, spec.tough_inner, spec.near).mean(-1),
        )


def reflected(outputs: Tensor, label: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's numbers (B, C) at their distance from the label, on the student's side of it, without gradient;
    from floating numbers (B, C) of student, label and teacher."""
    return label + (outputs.detach() - label).sign() * (teacher - label).abs()


def main(outputs: Tensor, label: Tensor, tolerant: Tensor) -> Tensor:
    """Loss (B, C) of every number: 3 e within the tolerant teacher's distance d of the label, e^2 + 3 d - d^2 beyond
    it; they meet at 3 d. All floating numbers (B, C)."""
    error, allowed = (label - outputs).abs(), (label - tolerant).abs()
    return torch.where(error <= allowed, 3.0 * error, error.square() + 3.0 * allowed - allowed.square())


def assist(outputs: Tensor, label: Tensor, teacher: Tensor, outer: float, inner: float, near: float) -> Tensor:
    """Distance (B, C) from the reflected `teacher`, times `outer` beyond it, `inner` between it and `near`, and 0
    within; from floating numbers (B, C) of student, label and teacher."""
    place = outputs.detach()
    boundary = label + near * (place - label).sign() * (teacher - label).abs()
    beyond = (place - teacher).sign() * (teacher - label).sign() > 0
    between = (teacher - place).sign() * (place - boundary).sign() >= 0
    factor = outer * beyond.to(outputs.dtype) + inner * between.to(outputs.dtype)
    return factor * (teacher - outputs).abs()


def _answers(inputs: LossInputs, name: str) -> Tensor:
    if name not in inputs.teachers:
        raise ValueError(f"this term needs the outputs of the teacher {name!r}")
    return at_least_float32(inputs.teachers[name]).detach()
