"""Models compared with the limits of wide and deep networks on their own features (2204.14126).

n training samples, m held-out ones, D numbers of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.diagnostics import WideDeep
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult
from worker.diagnostics.features import LabelledFeatures, last_features
from worker.diagnostics.pictures import draw_panels, label
from worker.metrics.wide_deep import (
    kernel_regression,
    majority,
    nearest,
    optimal_coefficients,
    singular_kernel,
    tangent_kernel,
)
from worker.students.model import Model
from worker.tasks.prediction import predict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL = "model"
BASELINES = {"majority": "majority vote", "nearest_neighbour": "the nearest neighbour"}
"""Classifiers that a model should be better than, and their names in a warning."""
JITTER = 1e-10
"""Added to the diagonal of the tangent kernel, as a share of its mean: samples may appear twice."""


class WideDeepAnalysis:
    """Figures of the student (`student`) and of every teacher, by its name: accuracies of the model (`model`) and of
    the classifiers on its features."""

    def __init__(self, spec: WideDeep) -> None:
        self._spec = spec

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        figures = {name: self._accuracies(model, inputs) for name, model in inputs.models.items()}
        rows: list[dict[str, Any]] = [
            {"model": name, "classifier": classifier, "accuracy": accuracy}
            for name, accuracies in figures.items()
            for classifier, accuracy in accuracies.items()
        ]
        warnings = [warning for name, accuracies in figures.items() for warning in _no_better(name, accuracies)]
        return DiagnosticResult(figures, rows, partial(draw_panels, figures, _draw), warnings)

    def _accuracies(self, model: Model, inputs: DiagnosticInputs) -> dict[str, float]:
        assert inputs.train is not None  # given wherever a job runs diagnostics
        samples = inputs.judged.samples
        training, held_out = (last_features(model, each, inputs.device) for each in (inputs.train, samples))
        outputs = predict(model, samples.inputs[model.input_key].to(inputs.device))
        found = {MODEL: outputs.argmax(1), **self._predictions(training, held_out.features, model.config.outputs)}
        return {name: float((classes == held_out.labels).double().mean()) for name, classes in found.items()}

    def _predictions(self, training: LabelledFeatures, held_out: Tensor, classes: int) -> dict[str, Tensor]:
        """Classes (m,) int64 of held-out features (m, D), by classifier."""
        known, unknown = (F.normalize(each.double(), dim=1) for each in (training.features, held_out))
        labels, alpha = training.labels, self._spec.alpha or max(known.shape[1] - 1, 2)
        distances = torch.cdist(unknown, known, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = partial(tangent_kernel, coefficients=optimal_coefficients(alpha), depth=self._spec.depth)
        among = kernel((known @ known.T).clamp(-1.0, 1.0))
        among.diagonal().add_(JITTER * among.diagonal().mean())
        between = kernel((unknown @ known.T).clamp(-1.0, 1.0))
        values = kernel_regression(among, between, F.one_hot(labels, classes).double())
        return {
            "majority": torch.full((len(unknown),), majority(labels, classes)),
            "nearest_neighbour": nearest(distances, labels),
            "singular_kernel": singular_kernel(distances, labels, classes, alpha),
            "tangent_kernel": values.argmax(1),
        }


def _no_better(name: str, accuracies: Mapping[str, float]) -> Iterator[str]:
    for classifier, title in BASELINES.items():
        if accuracies[MODEL] <= accuracies[classifier]:
            found = f"accuracy {accuracies[MODEL]:.4g}, {accuracies[classifier]:.4g}"
            yield f"{name} is no better than {title} on its own features ({found})"


def _draw(axes: Axes, name: str, accuracies: Mapping[str, float]) -> None:
    axes.bar(range(len(accuracies)), list(accuracies.values()))
    axes.set_ylim(0, 1)
    axes.set_xticks(range(len(accuracies)), [each.replace("_", "\n") for each in accuracies])
    label(axes, name, "", "accuracy")
    axes.tick_params(axis="x", labelsize=6)
