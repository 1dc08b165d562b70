"""Losses that create or correct the labels: self-distillation, and crops sorted by the teacher's confidence.

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
    """Universal self-KD: soft labels from the student's own prediction and that of a weak head on an earlier feature.

    The weak head is one linear layer that is trained with the student and is not exported. The cross-entropy with the
    labels is not part of this term: add it, with a weight of 1.
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
    """Input of the weak head: in a CNN the stage before the last, in a transformer an inner block."""
    reduction: Reduction = "mean"
    """How tokens are reduced to one vector: the `first` one (a class token), or the `mean` of those that aren't
    padding. Maps are always averaged over their positions."""
    alpha: NonNegative = 1.0
    """Weight of the target class; 1 on ImageNet, 0.1 on CIFAR-100."""
    beta: NonNegative = 0.1
    """Weight of the other classes, ranked by both heads."""
    mu: NonNegative = 0.005
    """Weight of the weak head's own cross-entropy; 0.005 on ImageNet, 0.1 on CIFAR-100."""
    rank_source: Literal["log", "prob"] = "log"
    """Values of the student from which the classes are ranked: log-probabilities, as in the authors' code, or
    probabilities, as in the paper."""

    def taps(self) -> Taps:
        return Taps(student=(self.feature,))


class Ferkd(LossSpec):
    """FerKD: depending on the teacher's confidence, a crop keeps the teacher's label, gets the true one, or is dropped.

    Teacher and student get the same crop, so the teacher's prediction is the soft label of that region. If every crop
    of a batch would be dropped, all are used, with the teacher's labels. The rule is the paper's; its thresholds are
    not published, and those here are ours.
    """

    couples_rows: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper("FerKD: Surgical Label Adaptation for Efficient Distillation", "2312.17473")
    equation: ClassVar[str] = (
        "-sum_c t_c log q_c, mean over the rows that are kept; a = confidence of p: dropped where a < low or a > high, "
        "t = 1 - smoothing on y and smoothing / (C - 1) on the others where a < middle, else t = p"
    )
    applies: ClassVar[str] = (
        "Classification with a teacher, mainly on random crops; labels may be probabilities; not with `accumulate` "
        "above 1."
    )
    kind: Literal["ferkd"] = "ferkd"
    confidence: Literal["top1", "target"] = "top1"
    """Definition of the teacher's confidence: its largest probability, or that of the label."""
    thresholds: Literal["confidence", "quantile"] = "confidence"
    """Meaning of `low`, `middle` and `high`: confidences, or quantiles of the confidences of a batch."""
    low: Share = 0.15
    """Crops with less confidence are dropped: background, and parts of other objects."""
    middle: Share = 0.4
    """Crops with less confidence are hard: they get the true label, smoothed."""
    high: Share = 1.0
    """Crops with more confidence are dropped as too easy; 1 drops none."""
    smoothing: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of a hard crop's label that is spread evenly over the other classes."""
    top_k: int | None = Field(None, ge=1)
    """Keeps only the teacher's most probable classes, as in a store of soft labels (FKD, arXiv 2112.01528: 5 or 10);
    none: all of them."""
    rest: Literal["spread", "drop"] = "spread"
    """With `top_k`: spreads the remaining probability evenly over the others, or renormalises the kept ones."""

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if not self.low <= self.middle <= self.high:
            raise ValueError("low, middle and high must be in increasing order")
        if self.rest == "drop" and self.top_k is None:
            raise ValueError("rest: drop needs top_k")
        return self
