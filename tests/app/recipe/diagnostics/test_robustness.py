"""Which jobs may ask for robustness, and for how much of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import find_problems
from app.recipe.diagnostics import Robustness, parts_of
from app.recipe.job import JobSpec


def job(diagnostic: dict[str, Any], **changes: Any) -> JobSpec:
    document = {
        "data": {"train": "a"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
        "evaluation": {"diagnostics": [{"kind": "robustness", **diagnostic}]},
    }
    return JobSpec.model_validate(document | changes)


def test_images_alone_are_attacked() -> None:
    assert find_problems(job({})) == []
    table = {"train": "a", "format": "csv", "input_columns": ["text"], "label_columns": ["label"]}
    (unfit,) = find_problems(job({}, task="text-classification", data=table))[-1:]
    assert unfit.param == "evaluation.diagnostics[0].kind"
    assert unfit.message == "robustness is not for text-classification"


def test_a_step_beyond_the_bound_is_refused_with_the_largest() -> None:
    assert find_problems(job({"bound": 0.1, "step_size": 0.2})) == []
    with pytest.raises(ValidationError, match=r"at most twice the bound, 0\.2") as refused:
        job({"bound": 0.1, "step_size": 0.25})
    assert [error["loc"][-1] for error in refused.value.errors()] == ["step_size"]


@pytest.mark.parametrize("setting", [{"bound": 0.0}, {"bound": 1.5}, {"step_size": 0}, {"steps": 0}, {"limit": 0}])
def test_numbers_that_are_no_attack_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        job(setting)


def test_a_limit_leaves_samples_out() -> None:
    assert parts_of(5000, Robustness()) == (0, 1000)
    assert parts_of(500, Robustness()) == (0, 500)
    assert parts_of(5000, Robustness(limit=None)) == (0, 5000)
