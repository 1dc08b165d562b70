"""Rules of the teachers, and of the cache of their outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from app.recipe.data.facts import SampleFacts
from app.recipe.data.sources import Table, Texts
from app.recipe.data.tokenizers import Trained
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.model import ModelConfig
from app.recipe.students.rules import length_problems
from app.recipe.teachers.cache import NoCache, TopKCache
from app.recipe.teachers.other_tokens import other_tokens_problems


def teaching_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of teachers that no loss uses, and of losses without a teacher."""
    if job.teacher is not None and job.teachers:
        yield Problem("teachers", "is given beside teacher", "one of the two")
    names = Counter(teacher.name for teacher in job.all_teachers)
    for name, count in names.items():
        if count > 1:
            yield Problem("teachers", f"{count} teachers are called {name!r}", "a name of its own for each")
    if job.teacher_weighting == "entropy" and job.task_spec.answers != "classes":
        yield Problem("teacher_weighting", f"is entropy, and answers of {job.task} are no distributions", "fixed")
    if job.task_spec.answers == "vectors" and len(names) > 1:
        yield Problem("teachers", "are several, whose vectors have no mean", "one teacher")
    learning = [term for terms in job.objectives.values() for term in terms if term.needs_teacher]
    if learning and not job.teacher_shares:
        kinds = ", ".join(sorted({term.kind for term in learning}))
        yield Problem("teacher", f"is missing, and {kinds} needs one", "the id of a model")
    clustered = job.recipe.pseudo_labels is not None and job.recipe.pseudo_labels.source == "teacher"
    mines = isinstance(job.data, Table) and job.data.mining is not None
    used = learning or clustered or mines or job.recipe.method.learns_from_teacher
    if names and not job.task_spec.takes_teachers:
        found = f"is given, and {job.task} learns from the encoder within its student"
        yield Problem("teachers" if job.teachers else "teacher", found, "null, and that model in student.model")
    elif names and not used:
        yield Problem(
            "teachers" if job.teachers else "teacher",
            "is given, but no loss learns from it",
            "a loss such as kd or nkd, or no teacher",
        )


def teacher_problems(job: JobSpec, models: Mapping[str, ModelConfig], train: SampleFacts | None) -> Iterator[Problem]:
    """Problems of teachers that do not fit the job's task or samples."""
    for index, teacher in enumerate(job.all_teachers):
        if teacher.reference in models:
            yield from _misfit_problems(job, models[teacher.reference], train, job.teacher_param(index))


def _misfit_problems(job: JobSpec, teacher: ModelConfig, train: SampleFacts | None, param: str) -> Iterator[Problem]:
    if not teacher.taken_for(job.task).task_spec.answers_alike(job.task_spec):
        yield Problem(param, f"was made for {teacher.task}", f"a model for {job.task}")
    if train and train.targets not in (None, teacher.targets):
        yield Problem(param, f"answers with {teacher.targets} numbers", f"{train.targets}, as in data.train")
    if job.task_spec.packs_texts:
        yield from length_problems(job, teacher, param)
    elif train and not teacher.input.accepts(train.input):
        accepted = f"{train.input.size}, as in data.train; of images any size"
        yield Problem(param, f"takes {teacher.input.size}", accepted)


def cache_problems(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Problems of the cache of teachers' outputs: settings that are not possible, or have no effect."""
    kept = job.teacher_cache
    if job.all_teachers and not isinstance(kept, NoCache) and job.data.augment_epochs and job.recipe.views > 1:
        found = "is given, and teachers' outputs are cached for one view of a sample"
        yield Problem("data.augment_epochs", found, "null, or teacher_cache.store: off")
    if isinstance(kept, NoCache) or kept.exact:
        return
    if job.task_spec.answers == "tokens" and not isinstance(kept, TopKCache):
        found = f"is {kept.dtype}, and nothing is kept of a language model's whole logits at every token"
        yield Problem("teacher_cache.dtype", found, "fp32, or store: top-k, or off")
        return
    if not job.all_teachers:
        yield Problem("teacher_cache", "is given, but there is no teacher", "a teacher, or no teacher_cache")
    if any(term.taps().teacher for terms in job.objectives.values() for term in terms):
        found = "is lossy, but a loss needs the teacher's activations, so that nothing is cached"
        yield Problem("teacher_cache", found, "dense in fp32, or off")
    if isinstance(kept, TopKCache):
        yield from _top_k_problems(job, kept.k, teachers)


def _top_k_problems(job: JobSpec, k: int, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    if not job.task_spec.chooses:
        yield Problem(
            "teacher_cache.store", f"is top-k, and answers of {job.task} are no distributions", "dense or off"
        )
        return
    known = [teachers[teacher.reference].outputs for teacher in job.all_teachers if teacher.reference in teachers]
    classes = min([count for count in (job.data.declared_classes, *known) if count is not None], default=k)
    if k > classes:
        yield Problem("teacher_cache.k", f"{k} is more than the {classes} classes", f"at most {classes}")


def tokenizer_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of a student's tokenizer that differs from the teachers'; whether the teachers' are the same is checked
    when they are read."""
    if job.start is not None or not isinstance(job.data, Texts):
        return
    if not isinstance(job.data.tokenizer, Trained):
        return
    if job.task_spec.per_token and job.all_teachers:
        found = f"is {job.data.tokenizer.kind}, and {job.task} compares student and teacher token by token"
        yield Problem("data.tokenizer", found, "null, or teacher")
    elif job.task_spec.answers == "tokens":
        for teacher in job.all_teachers:
            yield from other_tokens_problems(job, teacher.name)
