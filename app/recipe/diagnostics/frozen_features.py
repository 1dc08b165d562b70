"""Simple classifiers on frozen features: how much the features of a network hold."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from app.recipe.base import Answer, Paper, Positive
from app.recipe.diagnostics.base import DiagnosticSpec


def _ascending(sizes: list[int] | None) -> list[int] | None:
    if sizes is not None and sizes != sorted(set(sizes)):
        raise ValueError("must ascend, each number once")
    return sizes


class FrozenFeatures(DiagnosticSpec):
    """Fields of analyses of the inputs of a network's last layer, by classifiers that are fitted to training samples
    and measured on held-out ones."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    applies: ClassVar[str] = "Classification of samples."
    of_samples: ClassVar[bool] = True
    samples: int | None = Field(5000, ge=2)
    """Most training samples, drawn by the job's seed; none: all."""

    def trained(self, count: int) -> int:
        return count if self.samples is None else min(count, self.samples)


class LinearEvaluation(FrozenFeatures):
    """Naive Bayes and logistic regression on the features of the student and of every teacher, fitted to growing
    numbers of training samples, and the number from which logistic regression is better.

    Naive Bayes is Gaussian with one variance per feature that all classes share; logistic regression is multinomial
    with an L2 penalty. Naive Bayes needs a number of samples in the order of the logarithm of the features' width,
    logistic regression in the order of the width.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Revisiting Discriminative vs. Generative Classifiers: Theory and Implications", "2302.02334"
    )
    kind: Literal["linear-evaluation"] = "linear-evaluation"
    sizes: Annotated[list[Annotated[int, Field(ge=2)]] | None, Field(max_length=50), AfterValidator(_ascending)] = None
    """Numbers of training samples to fit to, ascending; none: 20, 50, 100, 200, 500 and so on, and all of them. Numbers
    below that of the classes are left out."""
    draws: int = Field(5, ge=1, le=100)
    """Random subsets of each size; each has a sample of every class."""
    penalty: Positive = 1.0
    """Inverse strength C of the penalty of logistic regression."""
    steps: int = Field(1000, ge=1, le=100_000)
    """Most iterations of its solver, L-BFGS."""


class WideDeep(FrozenFeatures):
    """The student and every teacher compared with the classifiers that infinitely wide and deep networks become, on its
    own features, scaled to unit length: majority vote, the nearest neighbour, and the singular kernel 1 / distance ^
    alpha; and with the neural tangent kernel of a network of finite depth. A model that is no better than the majority
    or the nearest neighbour gives a warning.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Wide and Deep Neural Networks Achieve Optimality for Classification", "2204.14126"
    )
    kind: Literal["widedeep"] = "widedeep"
    alpha: float | None = Field(None, ge=2.0, allow_inf_nan=False)
    """Exponent of the singular kernel, which the activation of the tangent kernel has in the limit: it is consistent
    where it is the dimension of the features' manifold. None: the width of the features minus 1, which is the dimension
    of the unit sphere."""
    depth: int = Field(4, ge=1, le=14)
    """Layers of the network of the tangent kernel."""
