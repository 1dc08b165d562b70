"""Calibration (1706.04599): reliability of confidences before and after temperature scaling.

n samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from app.recipe.diagnostics import Calibration
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, NotComputable
from worker.diagnostics.pictures import draw_panels, label
from worker.metrics import classification
from worker.metrics.calibration import ReliabilityBins, equal_mass_bins, equal_width_bins, fit_temperature

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _ScaledLogits(NamedTuple):
    """Logits of one model, and the temperature to divide them by."""

    logits: Tensor
    """(n, C) float32."""
    temperature: float


class CalibrationAnalysis:
    """Figures, bins and a reliability diagram of the student and of its teachers' mixture, each with its own logits
    (`student`) and with logits divided by its fitted temperature (`student_scaled`)."""

    def __init__(self, spec: Calibration) -> None:
        self._bins = spec.bins

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        judged, fitted = inputs.judged, inputs.fitted
        assert fitted is not None  # by the contract, this kind fits something
        labels, fitted_labels = judged.labels, fitted.labels
        _require_enough(fitted_labels, labels, self._bins)
        logits_of = {"student": (inputs.predict(fitted.samples), inputs.predict(judged.samples))}
        if fitted.teacher is not None and judged.teacher is not None:
            logits_of["teacher"] = (fitted.teacher, judged.teacher)
        models: dict[str, _ScaledLogits] = {}
        warnings = []
        for name, (fitted_logits, logits) in logits_of.items():
            _require_finite_likelihood(name, fitted_logits, fitted_labels)
            _require_finite_likelihood(name, logits, labels)
            temperature = fit_temperature(fitted_logits, fitted_labels)
            models |= {name: _ScaledLogits(logits, 1.0), f"{name}_scaled": _ScaledLogits(logits, temperature.value)}
            if temperature.at_bound:
                warnings.append(_at_bound(name, temperature.value, len(fitted_labels)))
        scaled = {name: one.logits.double() / one.temperature for name, one in models.items()}
        figures = {
            name: {"temperature": models[name].temperature, **self._figures(logits, labels)}
            for name, logits in scaled.items()
        }
        tables = {name: self._tables(logits, labels) for name, logits in scaled.items()}
        rows = [row for name, table in tables.items() for row in _rows(name, table)]
        return DiagnosticResult(figures, rows, partial(draw_reliability, tables), warnings)

    def _figures(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        bins = self._bins
        found = {
            "accuracy": classification.accuracy(logits, labels),
            "nll": classification.negative_log_likelihood(logits, labels),
            "brier": classification.brier_score(logits, labels),
            "ece": classification.calibration_error(logits, labels, bins),
            "mce": equal_width_bins(*classification.choices(logits, labels), bins).largest_error(),
            "adaptive_ece": classification.adaptive_calibration_error(logits, labels, bins),
            "classwise_ece": classification.classwise_calibration_error(logits, labels, bins).mean(),
        }
        return {name: float(value) for name, value in found.items()}

    def _tables(self, logits: Tensor, labels: Tensor) -> dict[str, ReliabilityBins]:
        chosen = classification.choices(logits, labels)
        return {
            "equal-width": equal_width_bins(*chosen, self._bins),
            "equal-mass": equal_mass_bins(*chosen, self._bins),
        }


def _require_enough(fitted_labels: Tensor, labels: Tensor, bins: int) -> None:
    """Raise NotComputable for fewer labels than bins, or none to fit on: the contract refuses too few samples, but a
    text may have no word with a token."""
    if not len(fitted_labels) or len(labels) < bins:
        found = f"the held-out samples have {len(fitted_labels)} labels to fit on and {len(labels)} to measure on"
        raise NotComputable(f"{found}; needed are 1 and {bins}, as many as bins")


def _require_finite_likelihood(name: str, logits: Tensor, labels: Tensor) -> None:
    """Raise NotComputable for logits without probabilities, or with probability 0 for a label."""
    likelihood = classification.negative_log_likelihood(logits, labels)
    if not bool(likelihood.isfinite()):
        raise NotComputable(f"the {name}'s negative log-likelihood on the held-out samples is {float(likelihood)}")


def _at_bound(name: str, temperature: float, labels: int) -> str:
    why = (
        "is always right, so that no temperature is too small"
        if temperature < 1
        else "is uninformative, so that no temperature is too large"
    )
    return f"the {name}'s temperature {temperature:.4g} is a bound of the search: on {labels} labels it {why}"


def _rows(name: str, tables: Mapping[str, ReliabilityBins]) -> Iterator[dict[str, Any]]:
    """Rows of the bins that have samples, numbered from 1."""
    for kind, table in tables.items():
        columns = (each.tolist() for each in table)
        for number, (samples, confidence, accuracy) in enumerate(zip(*columns, strict=True), start=1):
            if samples:
                row = {"model": name, "bins": kind, "bin": number, "samples": samples}
                yield row | {"confidence": confidence, "accuracy": accuracy}


def draw_reliability(models: Mapping[str, Mapping[str, ReliabilityBins]], path: Path) -> None:
    """Write a PNG with a panel for each model: bars are bins of equal width, points those of equal mass."""
    draw_panels(models, _draw, path)


def _draw(axes: Axes, name: str, tables: Mapping[str, ReliabilityBins]) -> None:
    wide, full = tables["equal-width"], tables["equal-mass"]
    bins = len(wide.samples)
    axes.plot((0, 1), (0, 1), color="0.6", linestyle=":", linewidth=1)
    axes.bar([place / bins for place in range(bins)], wide.accuracy.tolist(), 1 / bins, align="edge", edgecolor="white")
    axes.plot(full.confidence.tolist(), full.accuracy.tolist(), "o", color="C1", markersize=3)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    title = f"{name.replace('_', ' ')}: ECE {float(wide.expected_error()):.3g}"
    label(axes, title, "confidence", "accuracy")
