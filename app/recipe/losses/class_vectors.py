"""Losses of embeddings with classes as labels, each with a weight vector that is trained beside the student.

Notation of the equations: c_k the cosine of a sample's vector with the weight vector of class k, s the scale, K the
number of classes that are trained on.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Fraction, InputKind, NonNegative, Paper, Positive
from app.recipe.losses.embeddings import EmbeddingTerm
from app.recipe.losses.features import PartName
from app.recipe.losses.taps import Tap, Taps
from app.recipe.losses.weights import Weight

Margin = Literal["none", "cosface", "arcface"]
MarginSize = Annotated[float, Field(ge=0.0, le=1.0)]
CFCD = Paper(
    "Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage Image Retrieval", "2308.04008"
)
USUAL_MARGINS = {"none": 0.0, "cosface": 0.35, "arcface": 0.5}


class ClassTerm(EmbeddingTerm):
    """A term that learns vectors of images from their classes."""

    needs_teacher: ClassVar[bool] = False
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)


class ClassVectorTerm(ClassTerm):
    """A term that compares vectors with a weight vector for each class."""

    name: PartName = "classes"
    """Name of the weight vectors: terms and stages with the same name share them."""


class MarginTerm(ClassVectorTerm):
    """A term that may lower the cosine of a sample with its own class."""

    margin: Margin = "none"
    """Margin of the label's class: none, subtracted from its cosine, or added to its angle."""
    margin_size: MarginSize | None = None
    """The margin m, for arcface in radians; none: 0.35 for cosface, 0.5 for arcface."""

    @model_validator(mode="after")
    def _has_a_margin_of_this_size(self) -> Self:
        if self.margin == "none" and self.margin_size is not None:
            raise ValueError("margin_size is only allowed with margin: cosface or arcface")
        return self

    @property
    def used_margin(self) -> float:
        """The margin m."""
        return USUAL_MARGINS[self.margin] if self.margin_size is None else self.margin_size


class NormFace(MarginTerm):
    """Normalised softmax: cross-entropy of scaled cosines with class weights, optionally with a margin.

    It can't fall below log(1 + (K - 1) exp(-s K / (K - 1))): a fixed scale that is too small ends there.
    """

    paper: ClassVar[Paper | None] = Paper("NormFace: L2 Hypersphere Embedding for Face Verification", "1704.06369")
    equation: ClassVar[str] = (
        "-log softmax(s c')_y, c'_k = c_k for k != y, c'_y = c_y; with cosface (1801.09414) c_y - m, with arcface "
        "(1801.07698) cos(arccos(c_y) + m)"
    )
    applies: ClassVar[str] = "Image embeddings with classes; also with `accumulate` and several processes."
    kind: Literal["normface"] = "normface"
    scale: Positive = 10.0
    """The scale s, where training starts."""
    learn_scale: bool = True
    """Trains the scale beside the student, as a factor that stays positive; with a margin it is usually fixed."""
    eps: Positive = 1e-12
    """Least length that a vector is divided by."""


class Unpg(MarginTerm):
    """UNPG: a softmax of cosines with a margin, whose negatives are the class weights and the pairs of the batch.

    The cosines of all pairs of different classes, but outliers, are further logits of every sample: negatives of
    classification and of metric learning at once. A batch without such a pair has the softmax alone. Pairs are computed
    some rows at a time, so that memory is linear in the batch.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Unified Negative Pair Generation toward Well-discriminative Feature Space for Face Recognition", "2203.11593"
    )
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "-log softmax([s c'_1, ..., s c'_K, s n_1, ...])_y, c' with a margin as in normface, n the cosines of pairs of "
        "different classes from Q1 - w (Q3 - Q1) to Q3 + w (Q3 - Q1), Q their quartiles"
    )
    applies: ClassVar[str] = "Image embeddings with classes; not with `accumulate` above 1, nor several processes."
    kind: Literal["unpg"] = "unpg"
    scale: Positive = 64.0
    """The scale s."""
    margin: Margin = "arcface"
    """Margin of the label's class: none, subtracted from its cosine, or added to its angle."""
    whiskers: NonNegative = 1.5
    """The factor w: pairs further outside the quartiles than this share of their distance are left out."""


class Cfcd(ClassVectorTerm):
    """MadaCos, the global loss of CFCD: a softmax of cosines whose scale and margin follow from each batch.

    Both are set so that the sample with the median cosine has a probability of alpha, however well the classes are
    told apart; they have no gradient. The paper's second stage adds `cfcd-local`.
    """

    paper: ClassVar[Paper | None] = CFCD
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "-log softmax(s c')_y, c'_y = c_y - max(0, M - log(B alpha / (1 - alpha)) / s), M the lower median of the c_y, "
        "s = max(32, log(9999999 (1 - alpha) / alpha) / (1 - M)), B sum_(k != y) exp(s c_k) of the median sample"
    )
    applies: ClassVar[str] = "Image embeddings with classes; not with `accumulate` above 1, nor several processes."
    kind: Literal["cfcd"] = "cfcd"
    alpha: Fraction = 0.02
    """Probability of its own class for the sample with the median cosine."""
    mass: Literal["default", "mean", "median"] = "default"
    """B: that of the sample with the median cosine, or the mean or lower median over the batch."""
    most_scale: Positive = 512.0
    """The largest scale, which grows without bound as the median approaches 1."""


class CfcdLocal(ClassTerm):
    """Local mining of CFCD's second stage: local features of two images of a class match, and differ from the nearest
    ones of other classes' images.

    Of each image the positions of a feature map with the longest vectors are its local features, divided by their
    length. Each image is compared with the next one of its class in the batch: local features match that are nearest
    to each other, clearly nearer than the second, and among the longer half of the other image's. Of the images of
    other classes those with the most similar vectors are negatives, each with the local feature that is nearest to a
    matched one. An image without a match, or alone in its class, has a loss of 0.
    """

    paper: ClassVar[Paper | None] = CFCD
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "sum over matches (q, p) and negatives of max(0, |q - p|^2 - |q - n|^2 + margin), n the nearest local feature "
        "of the negative to q"
    )
    applies: ClassVar[str] = (
        "Image embeddings with classes, beside `cfcd` or another loss of vectors, with several samples of a class in a "
        "batch (`samples_per_class`); convolutional students. Not with `accumulate` above 1, nor several processes."
    )
    kind: Literal["cfcd-local"] = "cfcd-local"
    weight: Weight = 0.05
    """Factor of this term in the objective: a number, or a ramp over a stage."""
    feature: Tap
    """The student's map (B, C, H, W) with the local features, of two positions or more."""
    features: int = Field(64, ge=2, le=1024)
    """Local features of an image; all positions of the map if it has fewer."""
    negatives: int = Field(6, ge=1, le=64)
    """Images of other classes that each image is compared with; fewer if the batch has fewer."""
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Largest distance of a match, as a share of that to the second-nearest local feature."""
    margin: NonNegative = 0.1
    """Least difference of the squared distances, which are at most 4."""

    def taps(self) -> Taps:
        return Taps(student=(self.feature,))
