"""Which jobs may use a calibration, and how many held-out samples it needs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import SampleFacts
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.model import ImageInput


def job(*diagnostics: dict[str, Any], **changes: Any) -> JobSpec:
    document = {
        "data": {"train": "a"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
        "evaluation": {"diagnostics": list(diagnostics)},
    }
    return JobSpec.model_validate(document | changes)


def samples(count: int) -> SampleFacts:
    return SampleFacts(count, ImageInput(channels=1, height=4, width=4), 16)


def problems(spec: JobSpec, **counts: int) -> list[Problem]:
    facts = InputFacts(**{name: samples(count) for name, count in counts.items()})
    return [one for one in find_problems(spec, facts) if one.param.startswith("evaluation.diagnostics")]


def test_half_of_the_held_out_samples_must_fill_the_bins() -> None:
    asked = job({"kind": "calibration"}, {"kind": "calibration", "bins": 4})
    assert problems(asked) == []  # nobody has counted yet
    assert problems(asked, train=150) == []
    (few,) = problems(asked, train=100)
    assert few.param == "evaluation.diagnostics[0].bins"
    assert "10 held-out samples are left to measure on" in few.message
    assert few.accepted == "at most 10, or 30 held-out samples or more"


def test_samples_of_a_file_of_their_own_are_counted_there() -> None:
    asked = job({"kind": "calibration"}, data={"train": "a", "eval": "b"})
    assert problems(asked, train=10_000) == []
    assert problems(asked, train=10_000, eval=30) == []
    assert [one.param for one in problems(asked, train=10_000, eval=28)] == ["evaluation.diagnostics[0].bins"]


def test_without_samples_to_measure_on_no_number_of_bins_is_offered() -> None:
    asked = job({"kind": "calibration", "bins": 2}, data={"train": "a", "eval": "b"})
    assert [one.accepted for one in problems(asked, eval=2)] == ["4 held-out samples or more"]


def test_numbers_have_no_confidence() -> None:
    asked = job({"kind": "calibration"}, task="regression", recipe={"losses": [{"kind": "mse"}]})
    (unfit,) = problems(asked)
    assert (unfit.param, unfit.message) == ("evaluation.diagnostics[0].kind", "calibration is not for regression")


@pytest.mark.parametrize(
    "diagnostic", [{}, {"kind": "astrology"}, {"kind": "calibration", "bins": 1}, {"kind": "calibration", "bin": 3}]
)
def test_what_the_contract_does_not_know_is_refused(diagnostic: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(diagnostic)


def test_a_job_keeps_its_options_when_it_is_stored() -> None:
    asked = job({"kind": "calibration", "bins": 7})
    assert JobSpec.model_validate_json(asked.model_dump_json()) == asked
    assert asked.model_dump(mode="json")["evaluation"]["diagnostics"] == [{"kind": "calibration", "bins": 7}]
