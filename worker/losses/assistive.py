"""KD-Loss with a tolerant and a tough teacher (2111.07047), for landmarks and other lists of numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.losses.numbers import Assistive
from worker.losses.base import LossInputs
from worker.tensors import at_least_float32


class AssistiveParts(NamedTuple):
    """Parts of the loss, each (B,) floating and unweighted."""

    label: Tensor
    tolerant: Tensor
    tough: Tensor


class AssistiveTerm:
    """A main part with the labels, and one assistive part for each teacher; predictions and labels (B, C), floating.

    Choices by a sign have no gradient. Neither have a teacher's reflected predictions, though they depend on the
    student's side of the label. At the label itself the gradient is 0.
    """

    def __init__(self, spec: Assistive) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        parts, spec = self.parts(inputs), self.spec
        return spec.label_weight * parts.label + spec.tolerant_weight * parts.tolerant + spec.tough_weight * parts.tough

    def parts(self, inputs: LossInputs) -> AssistiveParts:
        """The three parts of each row; raises ValueError when a teacher's predictions are missing."""
        predictions, spec = at_least_float32(inputs.student), self.spec
        label = inputs.labels.to(predictions.dtype)
        teachers = (_teacher_predictions(inputs, name) for name in (spec.tolerant, spec.tough))
        tolerant, tough = (reflected(predictions, label, teacher) for teacher in teachers)
        return AssistiveParts(
            main(predictions, label, tolerant).mean(-1),
            assist(predictions, label, tolerant, spec.tolerant_outer, spec.tolerant_inner, spec.near).mean(-1),
            assist(predictions, label, tough, spec.tough_outer, spec.tough_inner, spec.near).mean(-1),
        )


def reflected(predictions: Tensor, label: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's predictions (B, C), reflected to the student's side of the label at the same distance, without
    gradient; from floating `predictions`, `label` and `teacher` (B, C)."""
    return label + (predictions.detach() - label).sign() * (teacher - label).abs()


def main(predictions: Tensor, label: Tensor, tolerant: Tensor) -> Tensor:
    """Loss (B, C) of every prediction: 3 e within the tolerant teacher's distance d of the label, e^2 + 3 d - d^2
    beyond it; both are 3 d at e = d. All arguments are floating (B, C)."""
    error, allowed = (label - predictions).abs(), (label - tolerant).abs()
    return torch.where(error <= allowed, 3.0 * error, error.square() + 3.0 * allowed - allowed.square())


def assist(predictions: Tensor, label: Tensor, teacher: Tensor, outer: float, inner: float, near: float) -> Tensor:
    """Distance (B, C) from the reflected `teacher`, times `outer` beyond it, `inner` between it and `near`, and 0
    within; from floating `predictions`, `label` and `teacher` (B, C)."""
    student = predictions.detach()
    boundary = label + near * (student - label).sign() * (teacher - label).abs()
    beyond = (student - teacher).sign() * (teacher - label).sign() > 0
    between = (teacher - student).sign() * (student - boundary).sign() >= 0
    factor = outer * beyond.to(predictions.dtype) + inner * between.to(predictions.dtype)
    return factor * (teacher - predictions).abs()


def _teacher_predictions(inputs: LossInputs, name: str) -> Tensor:
    if name not in inputs.teachers:
        raise ValueError(f"this term needs the predictions of the teacher {name!r}")
    return at_least_float32(inputs.teachers[name]).detach()
