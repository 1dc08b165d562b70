"""What learning from texts that are written in training asks of the rest of the job."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.data.sources import Texts
from app.recipe.job import JobSpec
from app.recipe.losses import CrossEntropy, Dkd, Loss, Nkd
from app.recipe.losses.taps import Taps
from app.recipe.methods.generation import Generation, OnPolicy, SequenceLevel, Writing
from app.recipe.problem import Problem
from app.recipe.tasks import tasks_for
from app.recipe.teachers.cache import TopKCache

FIELD = "recipe.generation"
DIVERGENCES = "a divergence such as jsd, kd or reverse-kl"


def judges(term: Loss) -> bool:
    """Whether a term needs no right answer: the teacher alone says how good each token is."""
    return not isinstance(term, CrossEntropy | Nkd | Dkd)


def generation_problems(job: JobSpec) -> Iterator[Problem]:
    """What can't be written, or would teach nothing."""
    wanted = job.recipe.generation
    if wanted is None:
        return
    if not job.task_spec.fits(type(wanted)):
        accepted = f"null, or task: {', '.join(tasks_for(type(wanted)))}"
        yield Problem(FIELD, f"is given, and nothing is written for {job.task}", accepted)
        return
    if not job.all_teachers:
        yield Problem(FIELD, f"is {wanted.kind}, and there is no teacher", "a teacher, or null")
    yield from _length_problems(job, wanted)
    yield from _feature_problems(job)
    yield from _job_problems(job, wanted)
    yield from _student_problems(job, wanted) if isinstance(wanted, OnPolicy) else _writer_problems(job, wanted)


def _job_problems(job: JobSpec, wanted: Generation) -> Iterator[Problem]:
    """What does not go with texts that are written as training goes."""
    if (several := job.resources).size > 1:
        field, count = ("nodes", several.nodes) if several.nodes > 1 else ("processes", several.processes)
        found = f"is {count}, and what training writes (recipe.generation) is written by one process so far"
        yield Problem(f"resources.{field}", found, "1, or recipe.generation: null")
    if job.recipe.compile:
        found = "is on, but what is written (recipe.generation) is of another length each time"
        yield Problem("recipe.compile", found, "false")
    if wanted.share == 1.0 and isinstance(job.teacher_cache, TopKCache) and not job.recipe.stages:
        found = "is top-k, but with recipe.generation.share: 1.0 no batch comes from the data, whose answers are kept"
        yield Problem("teacher_cache.store", found, "dense or off, or a smaller share")


def _length_problems(job: JobSpec, wanted: Writing) -> Iterator[Problem]:
    if isinstance(job.data, Texts) and wanted.prompt_tokens + wanted.new_tokens > job.data.max_length:
        together = f"{wanted.prompt_tokens} + {wanted.new_tokens} tokens"
        found = f"{together} with recipe.generation.prompt_tokens are more than data.max_length"
        yield Problem(f"{FIELD}.new_tokens", found, f"at most {job.data.max_length} together")


def _feature_problems(job: JobSpec) -> Iterator[Problem]:
    for index, term in enumerate(job.recipe.losses):
        if term.taps() != Taps():
            found = (
                f"{term.kind} looks at whole sequences, and what is written ends somewhere within (recipe.generation)"
            )
            yield Problem(f"recipe.losses[{index}].kind", found, "a loss on outputs, or in a stage before")


def _student_problems(job: JobSpec, wanted: OnPolicy) -> Iterator[Problem]:
    losses = job.recipe.losses
    if not any(judges(term) for term in losses):
        kinds = ", ".join(sorted({term.kind for term in losses}))
        found = f"{kinds} would have the student imitate itself: recipe.generation: on-policy has it learn from what it"
        yield Problem("recipe.losses", f"{found} wrote", DIVERGENCES)
    elif wanted.share == 1.0:
        for index, term in enumerate(losses):
            if not judges(term):
                found = f"{term.kind} learns from the data alone, and with recipe.generation.share: 1.0 no batch does"
                yield Problem(f"recipe.losses[{index}].kind", found, f"{DIVERGENCES}, or a smaller share")


def _writer_problems(job: JobSpec, wanted: SequenceLevel) -> Iterator[Problem]:
    names = [teacher.name for teacher in job.all_teachers]
    if wanted.writer is None and len(names) > 1:
        yield Problem(f"{FIELD}.writer", "is missing, and there are several teachers", f"one of {', '.join(names)}")
    elif wanted.writer is not None and names and wanted.writer not in names:
        yield Problem(f"{FIELD}.writer", f"there is no teacher {wanted.writer!r}", f"one of {', '.join(names)}")
