"""Measures of a model's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.metrics import classification

Measure = Callable[[Tensor, Tensor], Tensor]


def calibration(case: Case) -> Iterator[Comparison]:
    bins = int(case.hyper["bins"])
    measures: dict[str, Measure] = {
        "nll": classification.negative_log_likelihood,
        "brier": classification.brier_score,
        "ece": lambda *given: classification.calibration_error(*given, bins),
        "adaptive_ece": lambda *given: classification.adaptive_calibration_error(*given, bins),
        "classwise_ece": lambda *given: classification.classwise_calibration_error(*given, bins),
    }
    for name, measure in measures.items():
        found = measure(case.inputs["logits"], case.inputs["y"])
        yield Comparison("calibration", name, found, case.outputs[name])
