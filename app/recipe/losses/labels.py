"""The losses that make or mend the labels themselves: a student that teaches itself, and crops that a teacher sorts.

Notation of the equations as in `app.recipe.losses`.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import NonNegative, Paper, Share
from app.recipe.losses.base import LossSpec
from app.recipe.losses.features import Reduction
from app.recipe.losses.taps import Tap, Taps


class Uskd(LossSpec):
    """Universal self-KD: soft labels out of the student's own prediction and that of a weak head on an earlier feature.

    The weak head is one linear layer that is trained along and is not exported. The cross-entropy with the labels is
    no part of this term: give it beside it, with a weight of 1.
    """

    needs_teacher: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
        "Customized Soft Labels",
        "2303.13005",
    )
    equation: ClassVar[str] = (
        "-alpha (q_y^2 + 1 - mean of q_y^2 over rows) log q_y - beta sum_(c != y) r'_c log q'_c - mu sum_c s_c log w_c,"
        " w = softmax of the weak head, s = 0.9 onehot(y) + 0.1 / C, r_c = 1 / rank of w_c / (1 - w_y) + log q_c / "
        "(1 - log q_y), ' = renormalised over the classes != y"
    )
    applies: ClassVar[str] = (
        "Classification without a teacher; labels may be probabilities, of which the two largest count; not with "
        "`accumulate` above 1."
    )
    kind: Literal["uskd"] = "uskd"
    feature: Tap
    """Where the weak head reads: in a CNN the stage before the last, in a transformer an inner block."""
    reduction: Reduction = "mean"
    """What becomes one vector of tokens: the `first` one (a class token), or the `mean` of those that aren't padding.
    Maps are always averaged over their positions."""
    alpha: NonNegative = 1.0
    """Weight of the target class; 1 on ImageNet, 0.1 on CIFAR-100."""
    beta: NonNegative = 0.1
    """Weight of the other classes, in the order that both heads give them."""
    mu: NonNegative = 0.005
    """Weight of the weak head's own cross-entropy; 0.005 on ImageNet, 0.1 on CIFAR-100."""
    rank_source: Literal["log", "prob"] = "log"
    """What the order of the classes takes from the student: log-probabilities, as the authors' code does, or
    probabilities, as the paper says."""

    def taps(self) -> Taps:
        return Taps(student=(self.feature,))


class Ferkd(LossSpec):
    """FerKD: by how sure the teacher is of it, a crop keeps the teacher's label, gets the true one, or is dropped.

    The teacher sees the crop that the student sees, so its prediction is that region's soft label. Where nothing of a
    batch would count all of it does, with the teacher's labels. The rule is the paper's; its thresholds are not
    published, and those here are ours.
    """

    couples_rows: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper("FerKD: Surgical Label Adaptation for Efficient Distillation", "2312.17473")
    equation: ClassVar[str] = (
        "-sum_c t_c log q_c, mean over the rows that are kept; a = confidence of p: dropped where a < low or a > high, "
        "t = 1 - smoothing on y and smoothing / (C - 1) on the others where a < middle, else t = p"
    )
    applies: ClassVar[str] = (
        "Classification with a teacher, of random crops above all; labels may be probabilities; not with `accumulate` "
        "above 1."
    )
    kind: Literal["ferkd"] = "ferkd"
    confidence: Literal["top1", "target"] = "top1"
    """What the teacher's confidence is: its largest probability, or that of the label."""
    thresholds: Literal["confidence", "quantile"] = "confidence"
    """What `low`, `middle` and `high` mean: confidences, or shares of a batch in the order of their confidence."""
    low: Share = 0.15
    """Less sure crops are dropped: background, and pieces of other things."""
    middle: Share = 0.4
    """Less sure crops are hard ones: they get the true label, smoothed."""
    high: Share = 1.0
    """Surer crops are dropped as too easy; 1 drops none."""
    smoothing: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of a hard crop's label that is spread evenly over the other classes."""
    top_k: int | None = Field(None, ge=1)
    """Keeps only the teacher's likeliest classes, as in a store of soft labels (FKD, arXiv 2112.01528: 5 or 10); none:
    all of them."""
    rest: Literal["spread", "drop"] = "spread"
    """With `top_k`: spreads what the likeliest leave evenly over the others, or brings them to a sum of 1 alone."""

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if not self.low <= self.middle <= self.high:
            raise ValueError("low, middle and high must be in this order")
        if self.rest == "drop" and self.top_k is None:
            raise ValueError("rest is drop, but nothing is left over without top_k")
        return self
