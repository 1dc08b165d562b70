"""Remarks about valid jobs."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.job import JobSpec
from app.recipe.plan import plan_training
from app.recipe.remarks import remarks


def told(samples: int, **recipe: Any) -> list[tuple[str, str]]:
    document = {
        "data": {"train": "file_a"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}], "batch_size": 8, "epochs": 2, **recipe},
    }
    job = JobSpec.model_validate(document)
    return [(remark.code, remark.param) for remark in remarks(job, plan_training(job.recipe, samples))]


def test_an_ordinary_job_is_not_remarkable() -> None:
    assert told(80) == told(80, schedule={"kind": "cosine", "warmup_steps": 19}) == []


@pytest.mark.parametrize(("samples", "remarkable"), [(7, True), (8, False), (9, False)])
def test_a_batch_larger_than_the_data_is(samples: int, remarkable: bool) -> None:
    assert told(samples) == ([("batch_exceeds_data", "recipe.batch_size")] if remarkable else [])


def test_a_warmup_as_long_as_its_training_is() -> None:
    whole = {"schedule": {"kind": "cosine", "warmup_steps": 20}}
    assert told(80, **whole) == [("warmup_exceeds_training", "recipe.schedule.warmup_steps")]
    stage = {"losses": [{"kind": "cross-entropy"}], "epochs": 1, "schedule": {"kind": "linear", "warmup_steps": 10}}
    assert told(80, stages=[stage]) == [("warmup_exceeds_training", "recipe.stages[0].schedule.warmup_steps")]
    assert told(80, schedule={"kind": "cosine", "warmup_ratio": 0.99}) == []


def test_a_training_that_ends_before_it_has_seen_everything_is() -> None:
    assert told(80, max_steps=9) == [("less_than_an_epoch", "recipe.max_steps")]
    assert told(80, max_steps=10) == []
