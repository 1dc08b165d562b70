"""Losses of tasks whose output is a list of numbers.

Notation of the equations: x the student's output, g the label, t a teacher's output, each of C numbers; |.| and sign
are elementwise, and a loss is the mean over the C numbers and over the rows.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Answer, NonNegative, Paper, Positive, Share
from app.recipe.data.targets import KD_LOSS
from app.recipe.losses.base import LossSpec
from app.recipe.teachers.teacher import TeacherName

Factor = Annotated[float, Field(allow_inf_nan=False)]


class DistanceLoss(LossSpec):
    """A term that depends only on the difference between the student's numbers and their target."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"numbers"})
    applies: ClassVar[str] = "Regression and keypoints, with the labels or with a teacher's outputs as the target."
    target: Literal["labels", "teacher"] = "labels"
    """Target of the student: the label, or the teacher's output for the same sample."""

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]  # here it depends on a setting
        return self.target == "teacher"

    @model_validator(mode="after")
    def _names_a_teacher_only_to_learn_from_it(self) -> Self:
        if self.teacher is not None and not self.needs_teacher:
            raise ValueError("teacher is only allowed with target: teacher; set target to teacher, or omit teacher")
        return self


class Mse(DistanceLoss):
    """Mean squared difference."""

    equation: ClassVar[str] = "(x - g)^2, or (x - t)^2"
    kind: Literal["mse"] = "mse"


class SmoothL1(DistanceLoss):
    """Squared for small differences, absolute for large ones, so that outliers do not dominate."""

    paper: ClassVar[Paper | None] = Paper("Fast R-CNN", "1504.08083")
    equation: ClassVar[str] = "d^2 / (2 beta) where d = |x - g| < beta, else d - beta / 2"
    kind: Literal["smooth-l1"] = "smooth-l1"
    beta: Positive = 1.0
    """Difference at which squared changes to absolute, in units of the targets; coordinates that are fractions of a
    side need less than 1, such as 0.01."""


class Wing(DistanceLoss):
    """Wing loss: logarithmic for small differences, so that the last pixels still contribute; absolute otherwise."""

    paper: ClassVar[Paper | None] = Paper(
        "Wing Loss for Robust Facial Landmark Localisation with Convolutional Neural Networks", "1711.06753"
    )
    equation: ClassVar[str] = "w log(1 + d / epsilon) where d = |x - g| < w, else d - w + w log(1 + w / epsilon)"
    kind: Literal["wing"] = "wing"
    w: Positive = 10 / 256
    """Difference at which the logarithm ends, in units of the targets; the paper's 10 pixels of a side of 256."""
    epsilon: Positive = 2 / 256
    """Curvature of the logarithm, in units of the targets; smaller gives small differences more weight. The paper's
    2 pixels of a side of 256."""


class Assistive(LossSpec):
    """KD-Loss of two teachers: a label loss, and terms that pull the student towards or push it past each teacher.

    Every teacher's output is reflected to the student's side of the label. A student that is further from the label
    than the teacher is pulled in; one between the teacher and the label is pushed on to the label by a negative
    weight, so the loss may be below 0; one very close to the label has no term. The tough teacher was trained on the
    labels, the tolerant one on `soft-landmarks`.
    """

    paper: ClassVar[Paper | None] = KD_LOSS
    joint: ClassVar[bool] = True
    answers: ClassVar[frozenset[Answer]] = frozenset({"numbers"})
    equation: ClassVar[str] = (
        "label_weight M + tough_weight A(tough) + tolerant_weight A(tolerant); s = sign(x - g), t' = g + s |t - g|, "
        "b = g + near s |t' - g|, A(t) = |t' - x| (outer where x is beyond t', inner where it is between b and t', "
        "else 0); e = |x - g|, d = |g - t'_tolerant|, M = 3 e where e <= d, else e^2 + 3 d - d^2"
    )
    applies: ClassVar[str] = "Keypoints and regression with two teachers, one tough, one tolerant."
    kind: Literal["assistive"] = "assistive"
    tolerant: TeacherName
    """Name of the teacher that was trained on softened targets."""
    tough: TeacherName
    """Name of the teacher that was trained on the labels."""
    label_weight: NonNegative = 2.0
    """Weight of the part that compares with the label."""
    tolerant_weight: NonNegative = 1.0
    """Weight of the tolerant teacher's part."""
    tough_weight: NonNegative = 1.0
    """Weight of the tough teacher's part."""
    tolerant_outer: Factor = 1.8
    """Factor where the student is further from the label than the tolerant teacher."""
    tolerant_inner: Factor = -0.4
    """Factor where it is nearer; negative pushes it away from the teacher, to the label."""
    tough_outer: Factor = 1.9
    """Factor where the student is further from the label than the tough teacher."""
    tough_inner: Factor = -0.45
    """Factor where it is nearer."""
    near: Share = 0.15
    """Share of a teacher's distance from the label within which that teacher's term is 0."""

    @model_validator(mode="after")
    def _names_two_teachers(self) -> Self:
        if self.tolerant == self.tough:
            raise ValueError("tolerant and tough must name two different teachers")
        if self.teacher is not None:
            raise ValueError("teacher must not be given; tolerant and tough name the teachers of this loss")
        return self

    def named_teachers(self) -> dict[str, str]:
        return {"tolerant": self.tolerant, "tough": self.tough}
