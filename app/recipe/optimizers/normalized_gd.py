"""Normalised gradient descent for logistic losses."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.base import Answer, Paper, Positive, TaskOption
from app.recipe.optimizers.base import OptimizerSpec


class NormalizedGd(OptimizerSpec, TaskOption):
    """Gradient descent divided by the error of the outputs, so that steps do not shrink as the loss falls.

    The divisor is the mean over the batch of the student's probability of wrong classes (for losses with a teacher, of
    its distance from the teacher's probabilities, half the sum of absolute differences). The proof is for linear
    students (`mlp` without hidden layers), two separable classes and batches of all samples: any rate separates them, a
    large one in fewer steps. A batch without an error in float32 makes no step.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Gradient Descent Converges Arbitrarily Fast for Logistic Regression via Large and Adaptive Stepsizes",
        "2412.08424",
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    applies: ClassVar[str] = "Classification, with losses of the kind of cross-entropy on the student's outputs."
    kind: Literal["normalized-gd"] = "normalized-gd"
    lr: Positive = 1.0
    """Peak learning rate; 1 for good margins, 100 for fast separation."""

    def state_size(self, parameters: int, hidden_weights: int) -> int:
        return 0
