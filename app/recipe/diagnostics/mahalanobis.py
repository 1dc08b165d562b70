"""Mahalanobis: whether a classifier's features tell samples of other distributions, or attacked ones, from its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from app.recipe.base import Answer, InputKind, NonNegative, Paper, Reference
from app.recipe.diagnostics.base import DiagnosticSpec, MeasuredAttack
from app.recipe.problem import Problem

Attack = Literal["fgsm", "pgd"]


def _each_once(attacks: list[Attack]) -> list[Attack]:
    if len(set(attacks)) != len(attacks):
        raise ValueError("names an attack twice")
    return attacks


class Mahalanobis(MeasuredAttack, DiagnosticSpec):
    """Detection of outliers by the features of the student and of every teacher: a normal distribution is fitted to the
    features of each class of the training samples, with one covariance for all classes, and the score of a sample is
    the negative half of the squared Mahalanobis distance to the nearest class. The outliers are samples of a file,
    held-out images that are attacked, or both.

    The attacks are those of `robustness`, each model by attacks on itself. Layers are the stages of a convolutional
    network or the blocks of a transformer, as far as the network has such, and the inputs of the last layer;
    activations are averaged over positions, of texts over tokens that are no padding.
    """

    paper: ClassVar[Paper | None] = Paper(
        "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", "1807.03888"
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    applies: ClassVar[str] = "Classification of samples."
    of_samples: ClassVar[bool] = True
    kind: Literal["mahalanobis"] = "mahalanobis"
    data: Reference | None = None
    """File with outliers, in the format of `data.train` and with its columns or arrays of inputs; labels are not read.
    None: only attacked images."""
    attacks: Annotated[list[Attack], Field(max_length=2), AfterValidator(_each_once)] = ["fgsm", "pgd"]
    """Attacks on the held-out images; an empty list: none. Only of images."""
    layers: Literal["all", "last"] = "all"
    """`all`: all layers; `last`: only the inputs of the last layer."""
    combination: Literal["sum", "logistic"] = "sum"
    """Combination of the layers' scores: the sum of their z-scores by mean and standard deviation of the training
    samples, which needs no outliers; or a logistic regression that is fitted, for each set of outliers, to half of
    them and half of the held-out samples, drawn by the job's seed, and measured on the other halves."""
    magnitude: NonNegative = 0.0
    """Change of every pixel, as a share of the pixels' range, along the gradient that raises a layer's score, before
    that score is computed; 0: none. Only of images."""
    limit: int | None = Field(1000, ge=1)
    """Most held-out samples, and most samples of the file, that are scored, drawn by the job's seed; none: all."""

    def trained(self, count: int) -> int:
        return count

    @property
    def files(self) -> dict[str, str]:
        return {} if self.data is None else {"data": self.data}

    def judged(self, left: int) -> int:
        return left if self.limit is None else min(left, self.limit)

    def input_problems(self, path: str, reads: tuple[InputKind, ...]) -> Iterator[Problem]:
        """Problems of changes of pixels for samples that are no images."""
        if "images" in reads:
            return
        found = "is about pixels, and the samples are no images"
        if self.attacks:
            yield Problem(f"{path}.attacks", found, "[], and a file with outliers in data")
        if self.magnitude:
            yield Problem(f"{path}.magnitude", found, "0")

    @model_validator(mode="after")
    def _has_outliers(self) -> Mahalanobis:
        if self.data is None and not self.attacks:
            raise ValueError("must have a file in data, or attacks: there are no outliers otherwise")
        return self
