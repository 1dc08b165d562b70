"""What a loss term is.

Shapes: B rows of a batch, C classes (or numbers of a regression). Logits come in any floating dtype; terms compute in
at least float32 and stay in log space, so that logits of ±1e4 do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from app.recipe.losses.taps import Tap
from worker.tensors import at_least_float32


class Features(NamedTuple):
    """Activations (B, ...) of both sides, by the place that they were tapped at."""

    student: Mapping[Tap, Tensor]
    teacher: Mapping[Tap, Tensor]
    """Without gradient."""
    student_tokens: Tensor | None = None
    """(B, S) bool: which of the student's tokens aren't padding; none: all of them."""
    teacher_tokens: Tensor | None = None
    """The same of the teacher, whose tokenizer may be another."""


class LossInputs(NamedTuple):
    """What a term sees of a batch."""

    student: Tensor
    """Logits or numbers (B, C)."""
    labels: Tensor
    """(B,) int64, or (B, C) probabilities or numbers."""
    teacher: Tensor | None
    """The student's counterpart (B, C), without gradient; there for terms that need a teacher."""
    valid: Tensor | None = None
    """(B,) bool: rows that count, for terms that couple rows; none: all of them."""
    head: Tensor | None = None
    """Weight (C, D) of the teacher's last layer, for terms that look at it."""
    features: Features = Features({}, {})
    """There for terms that tap."""
    teachers: Mapping[str, Tensor] = {}
    """What every teacher says (B, C), by its name, for terms that need more than one."""


class LossTerm(Protocol):
    """One term of the objective."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Loss of each row (B,); the caller masks ignored rows, sums and divides.

        Whatever couples rows is shared out so that the mean over the rows that count is right.
        """
        ...


def teacher_logits(inputs: LossInputs) -> Tensor:
    """The teacher's logits; raises ValueError when the caller brought none."""
    if inputs.teacher is None:
        raise ValueError("this term needs a teacher's logits")
    return at_least_float32(inputs.teacher).detach()


def target_column(labels: Tensor) -> Tensor:
    """The target class of each row (B, 1); labels given as probabilities (B, C) count by their arg-max."""
    return (labels.argmax(-1) if labels.ndim == 2 else labels).unsqueeze(-1)
