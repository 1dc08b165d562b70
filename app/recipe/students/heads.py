"""Heads: the last layer of a built-in network, from features to outputs.

Each kind has one implementation in `worker/students/heads`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from app.recipe.base import EVERY_ANSWER, Answer, OneOf, Paper, Positive, TaskOption


class HeadSpec(TaskOption):
    """Base of the heads."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    has_bias: ClassVar[bool] = True
    """Whether it has an offset for each output."""
    kind: str

    @property
    def further_weights(self) -> int:
        """Trained numbers beside its matrix and its offsets."""
        return 0


class LinearHead(HeadSpec):
    """A linear layer with a bias."""

    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER
    kind: Literal["linear"] = "linear"


class NormalisedHead(HeadSpec):
    """Cosines between the features and a vector of each class, times a scale, without a bias.

    Neither the length of the features nor that of the class vectors counts, so that classes are as near as their
    directions: normalised softmax, with `cross-entropy`. With C classes the cross-entropy can't fall below
    log(1 + (C - 1) exp(-scale C / (C - 1))), so that a small fixed scale limits training.
    """

    has_bias: ClassVar[bool] = False
    paper: ClassVar[Paper | None] = Paper("NormFace: L2 Hypersphere Embedding for Face Verification", "1704.06369")
    kind: Literal["normalised"] = "normalised"
    scale: Positive = 10.0
    """Factor of the cosines; the first one if it is learned. Fixed ones are usually 16 to 64."""
    learned: bool = True
    """Whether the scale is trained with the weights, as its logarithm, so that it stays positive; weight decay draws it
    to its first value."""

    @property
    def further_weights(self) -> int:
        return int(self.learned)


class SvmHead(HeadSpec):
    """A linear layer of a margin for each class, whose weights the loss `l2-svm` regularises (1712.03541)."""

    paper: ClassVar[Paper | None] = Paper("Deep Learning using Linear Support Vector Machines", "1306.0239")
    kind: Literal["svm"] = "svm"


HEADS: tuple[type[HeadSpec], ...] = (LinearHead, NormalisedHead, SvmHead)
"""All kinds."""
Head = Annotated[HeadSpec, OneOf(HEADS)]
