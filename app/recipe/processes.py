"""What one job on several processes asks of the rest of the job."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.facts import Problem
from app.recipe.job import JobSpec
from app.recipe.optimizers import NormalizeAndProject, NormalizedGd

FIELD = "resources.processes"


def processes_problems(job: JobSpec) -> Iterator[Problem]:
    """What keeps the processes from taking the steps of a single one."""
    size = job.resources.processes
    if size == 1:
        return
    if job.resources.queue == "any":
        found = f"is any, and {size} processes need to know whether they share cores or have a GPU each"
        yield Problem("resources.queue", found, "cpu or gpu, or one process")
    if size > job.recipe.batch_size:
        yield Problem(FIELD, f"{size} is more than the samples of a batch", f"<= {job.recipe.batch_size}")
    coupled = {term.kind for terms in job.objectives.values() for term in terms if term.couples_rows}
    for kind in sorted(coupled):
        found = f"is {size}, but {kind} compares all samples of a batch with each other, and each process has a share"
        yield Problem(FIELD, found, "1")
    yield from _optimizer_problems(job)
    if job.recipe.compile:
        yield Problem("recipe.compile", f"is on, but a step of {size} processes is not compiled", "false")


def _optimizer_problems(job: JobSpec) -> Iterator[Problem]:
    """Optimizers that look at more than parameters and their gradients, which alone are the same everywhere."""
    stages = {f"recipe.stages[{index}].optimizer": stage.optimizer for index, stage in enumerate(job.recipe.stages)}
    for path, optimizer in {"recipe.optimizer": job.recipe.optimizer, **stages}.items():
        inner = optimizer.inner if isinstance(optimizer, NormalizeAndProject) else optimizer
        if isinstance(inner, NormalizedGd):
            found = "normalized-gd looks at the outputs of a whole batch, and each process has a share"
            yield Problem(f"{path}.kind", found, "any other, or one process")
