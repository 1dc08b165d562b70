"""Warnings about a valid job, for its owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan


class JobRemark(NamedTuple):
    """One warning: a stable code, the path of the field, and the text."""

    code: str
    param: str
    message: str


def remarks(job: JobSpec, plan: TrainingPlan) -> Iterator[JobRemark]:
    """Warnings that depend on the number of samples."""
    recipe, samples = job.recipe, plan.train_samples
    if recipe.batch_size > samples:
        found = f"is {recipe.batch_size}, and there are {samples} samples to train on: every step takes all of them"
        yield JobRemark("batch_exceeds_data", "recipe.batch_size", f"{found}, and an epoch is one step")
    for number, (stage, laid_out) in enumerate(zip(recipe.all_stages, plan.stages, strict=True)):
        schedule = stage.schedule or recipe.schedule
        if laid_out.steps and schedule.warmup_steps >= laid_out.steps:
            path = f"recipe.stages[{number}].schedule" if stage.schedule else "recipe.schedule"
            found = f"is {schedule.warmup_steps}, and this training has {laid_out.steps} steps"
            yield JobRemark(
                "warmup_exceeds_training", f"{path}.warmup_steps", f"{found}: the rate hardly gets to its peak"
            )
    if recipe.max_steps is not None and recipe.max_steps < plan.steps_per_epoch:
        found = f"is {recipe.max_steps}, and an epoch has {plan.steps_per_epoch} steps: some samples are never seen"
        yield JobRemark("less_than_an_epoch", "recipe.max_steps", found)
