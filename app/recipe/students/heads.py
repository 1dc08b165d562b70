"""Heads: the last layer of a network, from features to outputs.

Each kind has one implementation in `worker/students/heads`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import EVERY_ANSWER, Answer, NonNegative, OneOf, Paper, Positive, TaskOption
from app.recipe.losses import CrossEntropy, Kd, Loss
from app.recipe.losses.features import FeatureTerm
from app.recipe.losses.taps import Taps
from app.recipe.problem import Problem


class HeadSpec(TaskOption):
    """Base of the heads."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    has_bias: ClassVar[bool] = True
    """Whether it has an offset for each output."""
    by_token: ClassVar[bool] = False
    """Whether it is for a task that asks for a class of every token, too."""
    kind: str
    """Which head."""

    @property
    def further_weights(self) -> int:
        """Trained numbers beside its matrix and its offsets."""
        return 0

    def rows(self, outputs: int) -> int:
        """Rows of its matrix for so many outputs."""
        return outputs

    def loss_problems(self, term: Loss, path: str) -> Iterator[Problem]:
        """Problems of a loss, found at `path`, on its outputs."""
        yield from ()


class LinearHead(HeadSpec):
    """A linear layer: with a bias, or as the Transformers library has it."""

    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER
    by_token: ClassVar[bool] = True
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


class NbDiagHead(HeadSpec):
    """Gaussian naive Bayes with one variance per feature, for few samples: a linear layer in closed form (2302.02334).

    In training it is a linear layer like any other. After the last step its weights are computed from the features of
    the training samples, as they are: with mu_k the mean of class k, v the mean of the variances within the classes and
    p_k the share of the class, logit k is log p_k - 1/2 sum (x - mu_k)^2 / v, up to a number that all classes share. It
    needs fewer samples than logistic regression, and is worse with many. Metrics before the end are those of the
    trained layer.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Revisiting Discriminative vs. Generative Classifiers: Theory and Implications", "2302.02334"
    )
    kind: Literal["nb-diag"] = "nb-diag"
    smoothing: NonNegative = 1e-9
    """Added to the variances. The least variance is a millionth of the largest, so that a feature that is constant in
    training does not decide."""


class VqLogits(HeadSpec):
    """A codebook, whose K logits all outputs share: for classifiers with many classes, and for language models.

    The rows of the teacher's last layer are clustered by k-means before training; the cluster of a class, or token,
    stays its code, and the codebook starts as the centres if the teacher's features are as wide as the student's.
    Cross-entropy and `kd` are computed over the codes, from the teacher's mass in each, without the student's logits of
    all outputs. Those of one code have equal probabilities, of which the first counts as the choice: so the divergence
    from the teacher can't fall below a bound, nor a classifier's accuracy rise above one, and both are in the report
    (`codebook`). A model of the Transformers library is stored with a row for every output, so that the library loads
    it, and the codes; the ONNX graph has the codebook.
    """

    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "tokens"})
    has_bias: ClassVar[bool] = False
    paper: ClassVar[Paper | None] = Paper(
        "VQ-Logits: Compressing the Output Bottleneck of Large Language Models via Vector Quantized Logits",
        "2505.10202",
    )
    kind: Literal["vq-logits"] = "vq-logits"
    codes: int = Field(4096, ge=2, le=1 << 20)
    """Size K of the codebook; less than the classes, or tokens of the vocabulary."""

    def rows(self, outputs: int) -> int:
        return self.codes

    def loss_problems(self, term: Loss, path: str) -> Iterator[Problem]:
        if isinstance(term, CrossEntropy) and term.label_smoothing:
            yield Problem(f"{path}.label_smoothing", "is not 0, and codes stand for different numbers of outputs", "0")
        elif isinstance(term, Kd) and term.standardize:
            yield Problem(f"{path}.standardize", "is true, and needs the logits of all outputs", "false")
        elif not isinstance(term, CrossEntropy | Kd) and not (isinstance(term, FeatureTerm) and term.taps() != Taps()):
            found = f"is {term.kind}, which needs the logits of all outputs, and student.head is {self.kind}"
            yield Problem(f"{path}.kind", found, "cross-entropy, kd, or a loss on features")


HEADS: tuple[type[HeadSpec], ...] = (LinearHead, NormalisedHead, SvmHead, NbDiagHead, VqLogits)
"""All kinds."""
LIBRARY_HEADS: tuple[type[HeadSpec], ...] = (LinearHead, VqLogits)
"""Those of networks of the Transformers library."""
Head = Annotated[HeadSpec, OneOf(HEADS)]
