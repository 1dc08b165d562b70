"""What one job on several processes asks of the rest of the job."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.facts import Problem
from app.recipe.job import JobSpec

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
    if job.recipe.compile:
        yield Problem("recipe.compile", f"is on, but a step of {size} processes is not compiled", "false")
