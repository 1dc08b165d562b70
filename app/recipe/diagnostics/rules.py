"""Rules of the diagnostics."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.diagnostics import parts_of
from app.recipe.job import JobSpec
from app.recipe.problem import Problem


def diagnostic_problems(job: JobSpec, held_out: int | None) -> Iterator[Problem]:
    """Problems of diagnostics that do not fit the task, the teachers, or the held-out samples (None: not counted)."""
    for index, diagnostic in enumerate(job.evaluation.diagnostics):
        path, kind = f"evaluation.diagnostics[{index}]", type(diagnostic).model_fields["kind"].default
        if not job.task_spec.fits(type(diagnostic)):
            refusal = job.task_spec.refusal(type(diagnostic))
            yield Problem(f"{path}.kind", refusal, "a diagnostic for this task, or none")
            continue
        if diagnostic.needs_teacher and not job.all_teachers:
            found = f"{kind} compares with a teacher, and there is none"
            yield Problem(f"{path}.kind", found, "a job with a teacher, or another diagnostic")
            continue
        yield from diagnostic.input_problems(path, job.task_spec.reads)
        if held_out is not None:
            yield from diagnostic.problems(path, parts_of(held_out, diagnostic)[1])
