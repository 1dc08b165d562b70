"""Rules of `mahalanobis`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import ArrayFacts
from app.recipe.job import JobSpec

FIELD = "evaluation.diagnostics[1]"
ARCHIVE = {"x": ArrayFacts((50, 8, 8), "u1"), "y": ArrayFacts((50,), "i8")}
TEXTS = {"format": "csv", "train": "file_a", "input_columns": ["a"], "label_columns": ["b"]}


def job(options: dict[str, Any], **changes: Any) -> JobSpec:
    document = {
        "data": {"train": "file_a"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
        "evaluation": {"diagnostics": [{"kind": "calibration"}, {"kind": "mahalanobis", **options}]},
        **changes,
    }
    return JobSpec.model_validate(document)


def found(spec: JobSpec, **facts: Any) -> dict[str, str]:
    problems = find_problems(spec, InputFacts(**facts))
    return {problem.param: problem.message for problem in problems if problem.param.startswith(FIELD)}


def test_its_file_is_an_input_of_the_job() -> None:
    assert job({}).references == {"data.train": "file_a"}
    assert job({"data": "file_b"}).references == {"data.train": "file_a", f"{FIELD}.data": "file_b"}


def test_its_file_has_samples_like_those_of_training_and_needs_no_labels() -> None:
    spec = job({"data": "file_b"})
    alike, other = ({"x": ArrayFacts((9, *size), "u1")} for size in ((8, 8), (8, 9)))
    assert found(spec, train=ARCHIVE, further={f"{FIELD}.data": alike}) == {}
    assert "8 x 9" in found(spec, train=ARCHIVE, further={f"{FIELD}.data": other})[f"{FIELD}.data"].replace("×", "x")
    missing = found(spec, train=ARCHIVE, further={f"{FIELD}.data": {"y": ArrayFacts((9,), "i8")}})
    assert missing == {}  # the field that is wrong is that with the array's name
    assert find_problems(spec, InputFacts(train=ARCHIVE, further={f"{FIELD}.data": {"z": ARCHIVE["y"]}}))


def test_texts_are_not_attacked() -> None:
    of_texts = {"task": "text-classification", "data": TEXTS}
    assert list(found(job({"data": "file_b", "magnitude": 0.1}, **of_texts))) == [
        f"{FIELD}.attacks",
        f"{FIELD}.magnitude",
    ]
    assert found(job({"data": "file_b", "attacks": []}, **of_texts)) == {}


def test_words_have_no_features_of_their_own() -> None:
    spec = job({"data": "file_b"}, task="token-classification", data=TEXTS)
    assert "one class for each sample" in found(spec)[f"{FIELD}.kind"]


@pytest.mark.parametrize("options", [{"attacks": []}, {"attacks": ["fgsm", "fgsm"]}, {"step_size": 1.0}])
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(options)
