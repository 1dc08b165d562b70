"""What is held against what, and how close it has to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.recipe.losses import Loss
from app.recipe.teachers.teacher import Teacher
from tests.golden import Case
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.outputs import TeacherSignal

SMALL = 1e-3
"""Numbers below this are held absolutely: what should be 0 may be off by SMALL times the tolerance."""
SATURATED = 1e3
"""The same for gradients at logits of ±1e4, which are all but 0 or cancel."""


@dataclass(frozen=True)
class Comparison:
    """One output of a case and what this package makes of the same inputs."""

    kind: str
    """Name in the contract."""
    output: str
    """Name in the file."""
    found: Tensor
    expected: Tensor
    is_gradient: bool = False
    small: float = SMALL
    within: float = 1e-9
    """What is allowed of numbers in float64."""

    @property
    def error(self) -> float:
        """Worst relative error: of each entry, or of gradients relative to their largest entry."""
        found, expected = self.found.double(), self.expected.double()
        if found.shape != expected.shape:
            return float("inf")
        size = expected.abs().max() if self.is_gradient else expected.abs()
        return float(((found - expected).abs() / size.clamp(min=self.small)).max())

    @property
    def allowed(self) -> float:
        """1e-5 where the authors' code computes in float32."""
        return 1e-5 if self.expected.dtype == torch.float32 else self.within

    @property
    def passes(self) -> bool:
        return self.error <= self.allowed  # not so when the error is NaN


def rows_of(case: Case) -> LossInputs:
    """The logits and labels of a case as rows; tokens and pixels are rows too. Without labels every row counts."""
    student, teacher = (_flat(_first(case, names)) for names in (("logit_s", "logits"), ("logit_t", "teacher_logits")))
    named = [case.inputs[name] for name in ("label", "labels", "label_soft") if name in case.inputs]
    labels = named[0] if named else torch.zeros(len(student), dtype=torch.int64)
    return LossInputs(student, labels.flatten() if not labels.is_floating_point() else labels, teacher)


def evaluate(terms: Sequence[Loss], rows: LossInputs, head: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Value of the weighted terms over all valid rows, and its gradient at the student's logits (B, C)."""
    student = rows.student.clone().requires_grad_()
    objective = Objective(terms, LossBuilder({}, {}, student.shape[-1]), [Teacher(model="golden")])
    signals = {} if rows.teacher is None else {"teacher": TeacherSignal(rows.teacher, head)}
    outputs = BatchOutputs(student, rows.labels, signals, rows_per_sample=rows.rows_per_sample)
    loss = objective(outputs, objective.count(rows.labels))[TOTAL]
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach(), gradient


def compare(case: Case, kind: str, result: tuple[Tensor, Tensor], value: str, gradient: str) -> Iterator[Comparison]:
    """The value and the gradient of `result` against the outputs of these names, as far as the case has them."""
    if value in case.outputs:
        yield Comparison(kind, value, result[0], case.outputs[value])
    if gradient in case.outputs:
        expected = case.outputs[gradient]
        small = SATURATED if "large_logits" in case.name else SMALL
        yield Comparison(kind, gradient, _like(result[1], expected), expected, True, small)


def _first(case: Case, names: tuple[str, ...]) -> Tensor:
    return next(case.inputs[name] for name in names if name in case.inputs)


def _flat(logits: Tensor) -> Tensor:
    """(B, C), from (B, L, C) of tokens or (B, C, H, W) of pixels."""
    if logits.ndim == 4:
        logits = logits.movedim(1, -1)
    return logits.flatten(0, -2)


def _like(rows: Tensor, expected: Tensor) -> Tensor:
    """Undo `_flat`."""
    if expected.ndim == 4:
        count, classes, height, width = expected.shape
        return rows.reshape(count, height, width, classes).movedim(-1, 1)
    return rows.reshape(expected.shape)
