"""Naive Bayes and logistic regression on frozen features (2302.02334).

n training samples, D numbers of a feature.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.recipe.diagnostics import LinearEvaluation
from worker.data.randomness import generator
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, NotComputable
from worker.diagnostics.features import LabelledFeatures, last_features
from worker.diagnostics.pictures import draw_panels, label
from worker.students.heads.nb_diag import ClassMoments, linear_form

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from sklearn.linear_model import LogisticRegression

SMOOTHING = 1e-9
"""Added to the variances of naive Bayes, as in the authors' code."""
TOLERANCE = 1e-8
"""Largest gradient at which the solver of logistic regression stops."""
SIZES = [factor * 10**power for power in range(1, 9) for factor in (1, 2, 5)][1:]
"""Numbers of samples to fit to, by default: 20, 50, 100, 200, ..."""


class Errors(NamedTuple):
    """Test errors of several subsets of one size."""

    samples: int
    naive_bayes: list[float]
    logistic: list[float]
    converged: bool
    """Whether all logistic regressions did."""


class LinearEvaluationAnalysis:
    """Figures of the student (`student`) and of every teacher, by its name."""

    def __init__(self, spec: LinearEvaluation) -> None:
        self._spec = spec

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        assert inputs.train is not None  # given wherever a job runs diagnostics
        found: dict[str, list[Errors]] = {}
        for name, model in inputs.models.items():
            training, held_out = (
                last_features(model, samples, inputs.device) for samples in (inputs.train, inputs.judged.samples)
            )
            found[name] = [*self._errors(training, held_out, model.config.outputs, inputs.seed)]
        figures = {name: _figures(errors) for name, errors in found.items()}
        rows = [row for name, errors in found.items() for row in _rows(name, errors)]
        unfinished = [name for name, errors in found.items() if not all(one.converged for one in errors)]
        doubts = [f"logistic regression of {name} did not converge in {self._spec.steps} steps" for name in unfinished]
        return DiagnosticResult(figures, rows, partial(draw_panels, found, _draw), doubts)

    def _errors(
        self, training: LabelledFeatures, held_out: LabelledFeatures, classes: int, seed: int
    ) -> Iterator[Errors]:
        for size in self._sizes(training.labels):
            draws = self._spec.draws if size < len(training.labels) else 1
            randoms = [generator(seed, "linear-evaluation", size, draw) for draw in range(draws)]
            subsets = [training.take(_with_every_class(training.labels, size, random)) for random in randoms]
            bayes = [_share(naive_bayes(one, classes)(held_out.features) != held_out.labels) for one in subsets]
            models = [logistic_regression(one, self._spec.penalty, self._spec.steps) for one in subsets]
            logistic = [
                float((model.predict(held_out.features.numpy()) != held_out.labels.numpy()).mean()) for model in models
            ]
            yield Errors(size, bayes, logistic, all(int(max(one.n_iter_)) < self._spec.steps for one in models))

    def _sizes(self, labels: Tensor) -> list[int]:
        count, classes = len(labels), len(torch.unique(labels))
        if classes < 2:
            raise NotComputable("the training samples are of one class")
        wanted = self._spec.sizes or [*(size for size in SIZES if size < count), count]
        fitting = [size for size in wanted if classes <= size <= count]
        if not fitting:
            raise NotComputable(
                f"none of the sizes is from {classes}, the number of classes, to {count} training samples"
            )
        return fitting


def _with_every_class(labels: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Numbers (size,) int64 of a random sample of every class, and of further random ones."""
    order = torch.randperm(len(labels), generator=random)
    _, first = np.unique(labels[order].numpy(), return_index=True)
    others = torch.ones(len(order), dtype=torch.bool).index_fill(0, torch.from_numpy(first), value=False)
    return torch.cat([order[~others], order[others]])[:size].sort().values


def naive_bayes(training: LabelledFeatures, classes: int) -> NaiveBayes:
    """Gaussian naive Bayes with the variances that all classes share."""
    moments = ClassMoments(classes, training.features.shape[1])
    moments.add(training.features, training.labels)
    return NaiveBayes(*linear_form(moments, SMOOTHING))


class NaiveBayes(NamedTuple):
    """A linear classifier in float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Classes (n,) int64 of features (n, D) floating."""
        return (features.double() @ self.weight.T + self.bias).argmax(1)


def logistic_regression(training: LabelledFeatures, penalty: float, steps: int) -> LogisticRegression:
    """Multinomial logistic regression with an L2 penalty of inverse strength `penalty`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # it takes a second, and few jobs need it

    model = LogisticRegression(C=penalty, max_iter=steps, tol=TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # which the result has
        model.fit(training.features.double().numpy(), training.labels.numpy())
    return model


def _share(wrong: Tensor) -> float:
    return float(wrong.double().mean())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _crossing(errors: Sequence[Errors]) -> int | None:
    """Least size from which logistic regression has the lower mean error at every size; none: it has not at the
    largest."""
    crossing = None
    for one in reversed(errors):
        if _mean(one.logistic) > _mean(one.naive_bayes):
            break
        crossing = one.samples
    return crossing


def _figures(errors: Sequence[Errors]) -> Mapping[str, float]:
    least, largest = errors[0], errors[-1]
    crossing = _crossing(errors)
    return {
        "naive_bayes_error": _mean(largest.naive_bayes),
        "logistic_error": _mean(largest.logistic),
        "naive_bayes_error_few": _mean(least.naive_bayes),
        "logistic_error_few": _mean(least.logistic),
        "samples": largest.samples,
        "samples_few": least.samples,
        **({} if crossing is None else {"crossing": crossing}),
    }


def _rows(name: str, errors: Sequence[Errors]) -> Iterator[dict[str, Any]]:
    """By size: means and standard deviations over the draws."""
    for one in errors:
        row: dict[str, Any] = {"model": name, "samples": one.samples, "draws": len(one.logistic)}
        for kind, values in (("naive_bayes", one.naive_bayes), ("logistic", one.logistic)):
            row |= {f"{kind}_error": _mean(values), f"{kind}_deviation": float(np.std(values))}
        yield row


def _draw(axes: Axes, name: str, errors: Sequence[Errors]) -> None:
    sizes = [one.samples for one in errors]
    for title, values in (
        ("naive Bayes", [_mean(one.naive_bayes) for one in errors]),
        ("logistic regression", [_mean(one.logistic) for one in errors]),
    ):
        axes.plot(sizes, values, "o-", markersize=3, linewidth=1, label=title)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    label(axes, name, "training samples", "test error")
