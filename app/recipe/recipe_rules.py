"""Rules of a recipe's batches and schedule."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.job import JobSpec
from app.recipe.optimizers import MultiStep
from app.recipe.problem import Problem


def recipe_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of settings that contradict each other."""
    recipe = job.recipe
    if recipe.accumulate > recipe.batch_size:
        yield Problem(
            "recipe.accumulate", f"{recipe.accumulate} is more than the batch size", f"<= {recipe.batch_size}"
        )
    if isinstance(recipe.schedule, MultiStep) and recipe.schedule.milestones[-1] >= recipe.epochs:
        yield Problem(
            "recipe.schedule.milestones",
            f"{recipe.schedule.milestones[-1]} is not reached",
            f"epochs < {recipe.epochs}",
        )
