"""Measures of a model's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.metrics import classification
from worker.metrics.calibration import equal_width_bins, fit_temperature

Measure = Callable[[Tensor, Tensor], Tensor]
SEARCHED = 1e-5
"""Relative error of the temperatures in the file, which come from a search by values."""


def calibration(case: Case) -> Iterator[Comparison]:
    bins, logits, labels = int(case.hyper["bins"]), case.inputs["logits"], case.inputs["y"]
    measures: dict[str, Measure] = {
        "nll": classification.negative_log_likelihood,
        "brier": classification.brier_score,
        "ece": lambda *given: classification.calibration_error(*given, bins),
        "adaptive_ece": lambda *given: classification.adaptive_calibration_error(*given, bins),
        "classwise_ece": lambda *given: classification.classwise_calibration_error(*given, bins),
    }
    for name, measure in measures.items():
        yield Comparison("calibration", name, measure(logits, labels), case.outputs[name])
    table = equal_width_bins(*classification.choices(logits, labels), bins)
    told = {"mce": table.largest_error(), "bin_count": table.samples}
    told |= {"bin_conf": table.confidence, "bin_acc": table.accuracy}
    temperature = torch.tensor(fit_temperature(logits, labels).value, dtype=torch.float64)
    told["nll_at_best"] = classification.negative_log_likelihood(logits / temperature, labels)
    for name, found in told.items():
        yield Comparison("calibration", name, found, case.outputs[name])
    yield Comparison("calibration", "best_temperature", temperature, case.outputs["best_temperature"], within=SEARCHED)
