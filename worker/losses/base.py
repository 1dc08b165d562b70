"""The interface of a loss term.

Shapes: B rows of a batch, C classes (or values of a regression). Logits come in any floating dtype; terms compute in
at least float32 and stay in log space, so that logits of ±1e4 stay finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from app.recipe.losses.taps import Tap
from worker.tensors import at_least_float32


class Features(NamedTuple):
    """Activations (B, ...), floating, of student and teacher, by tap."""

    student: Mapping[Tap, Tensor]
    teacher: Mapping[Tap, Tensor]
    """Without gradient."""
    student_tokens: Tensor | None = None
    """(B, S) bool: the student's tokens that aren't padding; none: all of them."""
    teacher_tokens: Tensor | None = None
    """(B, S') bool: the same for the teacher, whose tokenizer may differ."""
    tokens_per_row: Tensor | None = None
    """Mean number of the student's tokens in the valid rows of the whole batch that these rows are a part of, a
    floating scalar; none: of these rows."""


class LossInputs(NamedTuple):
    """Inputs of a loss term for one batch."""

    student: Tensor
    """Logits, predictions or embeddings (B, C), floating."""
    labels: Tensor
    """(B,) int64 classes, or (B, C) floating probabilities or values."""
    teacher: Tensor | None
    """The teacher's outputs (B, C), floating; set for terms that need a teacher."""
    valid: Tensor | None = None
    """(B,) bool: valid rows, for terms that couple rows; none: all of them."""
    head: Tensor | None = None
    """Weight (C, D), floating, of the teacher's last layer, for terms that need it."""
    features: Features = Features({}, {})
    """Set for terms that read activations."""
    teachers: Mapping[str, Tensor] = {}
    """Outputs (B, C), floating, of every teacher by name, for terms that need more than one."""
    teacher_learns: bool = False
    """Whether the teacher's outputs have a gradient."""
    rows_per_sample: int = 1
    """See `Batch.rows_per_sample`."""
    epoch: float = 0.0
    """Epochs of the stage before this step, with fraction."""
    sample_index: Tensor | None = None
    """(B,) int64: index of each row among the training samples; set in plain steps (see `MethodSpec.plain_steps`)."""


@runtime_checkable
class Reporting(Protocol):
    """A term with figures for the report."""

    def figures(self) -> dict[str, float]:
        """Figures by name, after the last step."""
        ...


class LossTerm(Protocol):
    """One term of the objective."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Loss of each row (B,), float32 or float64; the caller masks ignored rows, sums and divides.

        A loss that couples rows is spread over them so that the mean over the valid rows is right.
        """
        ...


def teacher_logits(inputs: LossInputs) -> Tensor:
    """The teacher's logits (B, C) in at least float32, detached unless the teacher learns; raises ValueError when
    `inputs` has none."""
    if inputs.teacher is None:
        raise ValueError("this term needs a teacher's logits")
    logits = at_least_float32(inputs.teacher)
    return logits if inputs.teacher_learns else logits.detach()


def target_column(labels: Tensor) -> Tensor:
    """The target class of each row (B, 1) int64, from labels (B,) int64 or (B, C) probabilities, whose arg-max
    counts."""
    return (labels.argmax(-1) if labels.ndim == 2 else labels).unsqueeze(-1)


def expected_over_labels(losses: Tensor, labels: Tensor) -> Tensor:
    """Loss of each row (B,), from the `losses` (B, C) floating that it would have with each class as its label, and
    labels (B,) int64 or (B, C) probabilities."""
    if labels.ndim == 2:
        return (labels.to(losses.dtype) * losses).sum(-1)
    return losses.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
