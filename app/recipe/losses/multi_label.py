"""The losses of multi-label tasks, in which each label has a separate sigmoid.

Notation of the equations: y the label of a class, 0 or 1 or between them, p the teacher's and q the student's
probability of it, sigmoid(logit / T); a loss is the mean over the C classes and over the rows.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, Paper, Positive
from app.recipe.losses.base import LossSpec, Temperature


class BinaryCrossEntropy(LossSpec):
    """Binary cross-entropy with the labels, for each class separately."""

    needs_teacher: ClassVar[bool] = False
    answers: ClassVar[frozenset[Answer]] = frozenset({"labels"})
    equation: ClassVar[str] = (
        "-(pos_weight t log q + (1 - t) log (1 - q)), t = (1 - label_smoothing) y + label_smoothing / 2"
    )
    applies: ClassVar[str] = "Multi-label classification; labels may be probabilities, as of mixed images."
    kind: Literal["binary-cross-entropy"] = "binary-cross-entropy"
    pos_weight: Positive = 1.0
    """Factor of the part for present labels; above 1 a missed label costs more than a wrong one, which helps if each
    label is rare. The student's probabilities become larger than the labels' frequencies."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of each label that is spread evenly over present and absent."""


class BinaryKd(LossSpec):
    """Multi-label logit distillation: forward Kullback-Leibler divergence of each label's probability, times the
    squared temperature.

    The paper sums over the classes and has no temperature: its 10 for `weight` is 10 C here.
    """

    paper: ClassVar[Paper | None] = Paper("Multi-Label Knowledge Distillation", "2308.06453")
    answers: ClassVar[frozenset[Answer]] = frozenset({"labels"})
    equation: ClassVar[str] = "T^2 (p log (p / q) + (1 - p) log ((1 - p) / (1 - q)))"
    applies: ClassVar[str] = "Multi-label classification with a teacher."
    kind: Literal["binary-kd"] = "binary-kd"
    temperature: Temperature = 1.0
    """Divides both sides' logits. At high temperatures the divergence tends to a quarter of `logit-mse`."""
