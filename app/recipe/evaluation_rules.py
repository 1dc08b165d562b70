"""Rules of the evaluation."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.tasks import tasks_with


def evaluation_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of settings that are not for the task, and of requirements that are not metrics of teachers."""
    path = "evaluation.nme_points"
    if job.evaluation.nme_points is not None and path not in job.task_spec.options:
        wanted = tasks_with(path)
        yield Problem(path, f"is for {wanted}, the task is {job.task}", f"none, or task: {wanted}")
    required, known = job.evaluation.require_teacher, job.task_spec.metrics
    if required is not None and not job.all_teachers:
        yield Problem("evaluation.require_teacher", "is given, but there is no teacher", "a teacher, or null")
    for name in (name for name in required or () if name not in known):
        found, accepted = f"is no metric of {job.task}", f"one of {', '.join(known)}"
        yield Problem(f"evaluation.require_teacher.{name}", found, accepted)
