"""Losses of a classifier with the labels alone, in the place of cross-entropy or beside it.

Notation of the equations as in `app.recipe.losses`; f are the student's logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import NonNegative, Paper, Positive
from app.recipe.losses.base import LossSpec
from app.recipe.problem import Problem

Real = Annotated[float, Field(allow_inf_nan=False)]
LDR = Paper(
    "Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness and Adaptivity",
    "2112.14869",
)


class LabelLoss(LossSpec):
    """A term of the student's logits and the labels."""

    needs_teacher: ClassVar[bool] = False
    least_classes: ClassVar[int] = 2
    """Fewest classes that it is for."""

    kind: str

    def class_problems(self, classes: int, path: str) -> Iterator[Problem]:
        """Problems of this term, which the job lists at `path`, with so many classes."""
        if classes < self.least_classes:
            found = f"{self.kind} is not for {classes} classes"
            yield Problem(f"{path}.kind", found, f"{self.least_classes} classes or more, or another loss")


class ZLoss(LabelLoss):
    """Z-loss: the label's logit, standardised over the classes, is to exceed a bound.

    It depends on neither the mean nor the scale of a row's logits, so that weights need weight decay, and outputs are
    no probabilities: judge its students by accuracy. Not the squared log-partition function of the same name.
    """

    least_classes: ClassVar[int] = 3
    paper: ClassVar[Paper | None] = Paper("The Z-loss: a shift and scale invariant classification loss", "1604.08859")
    equation: ClassVar[str] = "log(1 + exp(a (b - z_y))) / a, z = (f - mean f) / standard deviation of f"
    applies: ClassVar[str] = "Classification with three classes or more; labels may be probabilities."
    kind: Literal["z-loss"] = "z-loss"
    a: Positive = 1.0
    """Sharpness of the bend at the bound. The authors tune it from 0.1 to 3."""
    b: Real = 0.0
    """Bound of the label's standardised logit, which is below the square root of C - 1. The authors tune it from 0 to
    30; a larger one aims at the first k classes rather than the first."""


class CompSum(LabelLoss):
    """Comp-sum losses: one family with cross-entropy (`tau` 1), generalised cross-entropy (between 1 and 2), the mean
    absolute error (2) and the sum-exponential loss (0).

    Above 1 a label that is very unlikely to the student has little gradient: less harm by wrong labels, but slower
    training. Below 1 the exponent is limited to 80, beyond which a row has no gradient.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Cross-Entropy Loss Functions: Theoretical Analysis and Applications", "2304.07288"
    )
    equation: ClassVar[str] = "(q_y^(tau - 1) - 1) / (1 - tau), or -log q_y where tau = 1; q = softmax(f / rho)"
    applies: ClassVar[str] = "Classification, mainly with wrong labels (`tau` 1.5 to 1.9); labels may be probabilities."
    kind: Literal["comp-sum"] = "comp-sum"
    tau: float = Field(1.0, ge=0.0, le=2.0)
    """Member of the family."""
    rho: Positive = 1.0
    """Divides the logits."""


class Ldr(LabelLoss):
    """LDR-KL: label-distributionally robust loss, a margin loss over the worst distribution of the classes near the
    uniform one.

    A small `kl_weight`, the paper's lambda, gives the margin loss of Crammer and Singer; 1 without a margin gives the
    cross-entropy of the scores, less log C.
    """

    paper: ClassVar[Paper | None] = LDR
    equation: ClassVar[str] = (
        "l log(1 / C sum_c exp((g_c - g_y + margin [c != y]) / l)), l = kl_weight, "
        "g = softplus(f) / mean of softplus(f)"
    )
    applies: ClassVar[str] = "Single-label classification, mainly with wrong labels."
    kind: Literal["ldr"] = "ldr"
    kl_weight: Positive = 1.0
    """Weight of the divergence from the uniform distribution; a smaller one favours the strongest wrong class."""
    margin: NonNegative = 0.1
    """Distance by which the label's score is to exceed the others', in units of a score."""
    scores: Literal["normalised", "logits"] = "normalised"
    """Scores g: positive and of mean 1 over the classes, as in the authors' code, or the logits themselves."""


class L2Svm(LabelLoss):
    """Support vector machine on the features: hinge losses of the margins, and the mean square of the head's weights.

    The form is that of the authors' code, with means; the paper has sums, and half of the squared norm. Outputs are
    margins, not log-probabilities: choose by the largest, and calibrate before reading them as probabilities.
    """

    paper: ClassVar[Paper | None] = Paper(
        "An Architecture Combining Convolutional Neural Network (CNN) and Support Vector Machine (SVM) for Image "
        "Classification",
        "1712.03541",
    )
    equation: ClassVar[str] = (
        "regularisation mean(W^2) + c / C sum_c max(0, margin - s_c f_c)^2, s_y = 1, else -1; crammer-singer: "
        "c / C sum_(c != y) max(0, margin + f_c - f_y)^2; without the square if hinge is absolute"
    )
    applies: ClassVar[str] = (
        "Single-label classification; a built-in network with `student.head: {kind: svm}`, or any with "
        "`regularisation: 0`; with the method supervised or rollback."
    )
    kind: Literal["l2-svm"] = "l2-svm"
    c: Positive = 1.0
    """Weight of the hinge losses against the weights."""
    hinge: Literal["squared", "absolute"] = "squared"
    """Penalty of a margin that is too small."""
    form: Literal["one-against-all", "crammer-singer"] = "one-against-all"
    """Margins of each class against all others, or of the label against each other class."""
    margin: Positive = 1.0
    """Least margin without a loss."""
    regularisation: NonNegative = 1.0
    """Weight of the mean square of the head's weights, without their offsets."""

    @property
    def reads_weights(self) -> bool:
        return self.regularisation > 0.0

    @classmethod
    def why_not_by_token(cls) -> str:
        return "the networks of that task have no head of kind svm"
