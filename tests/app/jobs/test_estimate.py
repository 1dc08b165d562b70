"""Estimates of a job before it runs."""

from __future__ import annotations

from typing import Any

from app.jobs.estimate import plan_of
from app.recipe.checks import InputFacts
from app.recipe.data.facts import SampleFacts
from app.recipe.job import JobSpec
from app.recipe.students.inputs import ImageInput


def samples_trained_on(**recipe: Any) -> int:
    spec = JobSpec.model_validate(
        {
            "data": {"train": "t", "eval_fraction": 0.2},
            "teacher": {"model": "m"},
            "student": {"architecture": "mlp"},
            "recipe": {"losses": [{"kind": "kd"}], **recipe},
        }
    )
    plan = plan_of(spec, InputFacts(train=SampleFacts(100, ImageInput(channels=1, height=8, width=8), 64)))
    assert plan is not None
    return plan.train_samples


def test_samples_that_the_method_keeps_back_are_not_trained_on() -> None:
    assert samples_trained_on() == 80
    assert samples_trained_on(method={"kind": "meta", "quiz_fraction": 0.25}) == 60
