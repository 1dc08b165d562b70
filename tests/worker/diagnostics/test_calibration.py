"""Calibration of a student and its teacher: figures, bins and picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.recipe.diagnostics import Calibration
from worker.data.batches import Batch, whole_split
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, HeldOutPart, NotComputable
from worker.diagnostics.calibration import CalibrationAnalysis
from worker.metrics import classification
from worker.metrics.calibration import fit_temperature
from worker.tensors import IGNORED

SAMPLES, CLASSES = 400, 3
COLUMNS = ["student", "student_scaled", "teacher", "teacher_scaled"]


def part(seed: int, factor: float = 4.0, teacher: bool = True) -> HeldOutPart:
    """Samples that are logits, too large by a factor, of which labels were drawn."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(SAMPLES, CLASSES, generator=random)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=random).squeeze(1)
    return HeldOutPart(whole_split({"table": logits * factor}, labels), logits if teacher else None)


def analysed(judged: HeldOutPart, fitted: HeldOutPart, bins: int = 10) -> DiagnosticResult:
    def predict(samples: Batch) -> Tensor:
        return samples.inputs["table"]

    inputs = DiagnosticInputs(predict, judged, fitted, seed=0, device=torch.device("cpu"))
    return CalibrationAnalysis(Calibration(bins=bins))(inputs)


def _bin_of(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["model"], row["bins"]


def test_the_temperature_is_fitted_on_one_part_and_everything_measured_on_the_other() -> None:
    judged, fitted = part(1), part(2)
    found = analysed(judged, fitted)
    logits, labels = judged.samples.inputs["table"], judged.samples.targets
    temperature = fit_temperature(fitted.samples.inputs["table"], fitted.samples.targets).value
    assert list(found.figures) == COLUMNS
    plain, scaled = found.figures["student"], found.figures["student_scaled"]
    assert (plain["temperature"], scaled["temperature"]) == (1.0, temperature)
    assert plain["ece"] == float(classification.calibration_error(logits, labels, 10))
    gaps = [
        abs(row["accuracy"] - row["confidence"]) for row in found.table if _bin_of(row) == ("student", "equal-width")
    ]
    assert plain["mce"] == pytest.approx(max(gaps))
    divided = logits.double() / temperature
    assert scaled["nll"] == float(classification.negative_log_likelihood(divided, labels))
    assert scaled["classwise_ece"] == float(classification.classwise_calibration_error(divided, labels, 10).mean())


def test_scaling_reduces_overconfidence_and_leaves_choices() -> None:
    found = analysed(part(1), part(2)).figures
    for name in ("nll", "brier", "ece", "adaptive_ece"):
        assert found["student_scaled"][name] < found["student"][name]
    assert found["student_scaled"]["accuracy"] == found["student"]["accuracy"]
    assert found["teacher_scaled"]["temperature"] == pytest.approx(1.0, abs=0.3)


def test_bins_add_up_to_the_figures() -> None:
    found = analysed(part(1), part(2))
    for name in COLUMNS:
        bins = [row for row in found.table if (row["model"], row["bins"]) == (name, "equal-width")]
        assert sum(row["samples"] for row in bins) == SAMPLES
        gaps = sum(row["samples"] * abs(row["accuracy"] - row["confidence"]) for row in bins)
        assert gaps / SAMPLES == pytest.approx(found.figures[name]["ece"])
        equal = [row["samples"] for row in found.table if (row["model"], row["bins"]) == (name, "equal-mass")]
        assert equal == [SAMPLES // 10] * 10


def test_the_picture_has_a_panel_for_each_column(tmp_path: Path) -> None:
    widths = []
    for teacher in (True, False):
        found = analysed(part(1, teacher=teacher), part(2, teacher=teacher))
        assert found.draw is not None
        found.draw(tmp_path / "picture.png")
        content = (tmp_path / "picture.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        widths.append(int.from_bytes(content[16:20], "big"))
        assert len(found.figures) == (4 if teacher else 2)
    assert widths == [1200, 600]


def test_a_temperature_at_its_bound_is_warned_of() -> None:
    right = torch.eye(CLASSES).repeat(SAMPLES // CLASSES, 1)
    perfect = HeldOutPart(whole_split({"table": right}, right.argmax(-1)))
    (warning,) = analysed(perfect, perfect).warnings
    assert warning.startswith("the student's temperature 0.01832 is a bound of the search")
    assert analysed(part(1), part(2)).warnings == []


def test_outputs_that_give_a_label_no_probability_are_refused_with_the_reason() -> None:
    judged = part(1, teacher=False)
    judged.samples.inputs["table"][:, 0] = -torch.inf
    with pytest.raises(NotComputable, match=r"the student's negative log-likelihood .* is inf"):
        analysed(judged, part(2, teacher=False))


def words(seed: int, ignored: int) -> HeldOutPart:
    """The samples of `part` as texts of five tokens, of which the last ones are ignored."""
    flat = part(seed)
    assert flat.teacher is not None
    counted = torch.arange(5).expand(SAMPLES // 5, 5) < 5 - ignored
    logits, labels = (each.unflatten(0, (-1, 5)) for each in (flat.samples.inputs["table"], flat.samples.targets))
    samples = whole_split({"table": logits}, labels.where(counted, IGNORED))
    return HeldOutPart(samples, flat.teacher.unflatten(0, (-1, 5))[counted])


def predicted_words(judged: HeldOutPart, fitted: HeldOutPart) -> DiagnosticResult:
    def predict(samples: Batch) -> Tensor:
        return samples.inputs["table"][samples.targets != IGNORED]

    inputs = DiagnosticInputs(predict, judged, fitted, seed=0, device=torch.device("cpu"))
    return CalibrationAnalysis(Calibration(bins=10))(inputs)


def test_of_texts_the_tokens_that_count_are_as_samples() -> None:
    found = predicted_words(words(1, ignored=2), words(2, ignored=2))
    kept = (torch.arange(SAMPLES) % 5 < 3).nonzero().squeeze(1)
    judged, fitted = (HeldOutPart(one.samples.take(kept), one.teacher[kept]) for one in (part(1), part(2)))  # type: ignore[index]
    wanted = analysed(judged, fitted)
    assert found.figures == wanted.figures
    assert found.table == wanted.table


@pytest.mark.parametrize(("which", "wanted"), [("fitted", " 0 labels to fit on"), ("judged", " 0 to measure on")])
def test_texts_without_words_give_nothing_to_measure(which: str, wanted: str) -> None:
    parts = {"fitted": words(1, ignored=2), "judged": words(2, ignored=2)} | {which: words(3, ignored=5)}
    with pytest.raises(NotComputable, match=wanted):
        predicted_words(**parts)
