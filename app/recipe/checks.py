"""Rules that span several fields of a job, or a job and the facts about its inputs.

A rule is beside the fields that it checks, in the `rules` of their package; here all rules are called in order. One
pure function, so that the HTTP side, with file headers, and the trainer, with all samples, check a job by the same
rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.recipe.data.class_rules import class_problems
from app.recipe.data.facts import Known, SampleFacts
from app.recipe.data.headers import sample_facts
from app.recipe.data.rules import data_problems, sample_problems
from app.recipe.diagnostics.rules import diagnostic_problems
from app.recipe.evaluation_rules import evaluation_problems
from app.recipe.job import JobSpec
from app.recipe.losses.module_rules import module_problems
from app.recipe.losses.rules import loss_problems
from app.recipe.methods.base import method_problems
from app.recipe.optimizers.rules import optimizer_problems
from app.recipe.plan import held_out_count
from app.recipe.problem import Problem
from app.recipe.processes import processes_problems
from app.recipe.recipe_rules import recipe_problems
from app.recipe.students.model import ModelConfig
from app.recipe.students.rules import start_problems, student_problems
from app.recipe.students.search_rules import search_problems
from app.recipe.tasks.many_labels import many_label_problems
from app.recipe.teachers.rules import cache_problems, teacher_problems, teaching_problems, tokenizer_problems


@dataclass(frozen=True)
class InputFacts:
    """Facts about a job's inputs; None: unknown so far, so not checked."""

    train: Known | None = None
    eval: Known | None = None
    teachers: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Descriptions of teachers, and of a student that starts as a stored model, by their reference."""
    further: Mapping[str, Known] = field(default_factory=dict)
    """Facts about files of diagnostics, by the field that names each."""


def find_problems(job: JobSpec, facts: InputFacts = InputFacts()) -> list[Problem]:
    """All problems of `job` that validation of single fields can't find, in the order of the document."""
    problems: list[Problem] = []
    train = _samples(job, facts.train, "data.train", problems)
    held_out = _samples(job, facts.eval, "data.eval", problems)
    further = {param: _samples(job, known, param, problems) for param, known in facts.further.items()}
    given, models = (train.input if train else None), facts.teachers
    return [
        *problems,
        *sample_problems(job.data, train, {"data.eval": held_out, **further}),
        *data_problems(job.data, job.task_spec, train),
        *teaching_problems(job),
        *teacher_problems(job, models, train),
        *class_problems(job, models),
        *student_problems(job, models, given),
        *search_problems(job, models),
        *start_problems(job, models, given),
        *cache_problems(job, models),
        *loss_problems(job, models),
        *module_problems(job, models),
        *optimizer_problems(job),
        *evaluation_problems(job),
        *many_label_problems(job, models, train),
        *tokenizer_problems(job),
        *recipe_problems(job),
        *method_problems(job),
        *processes_problems(job),
        *diagnostic_problems(job, held_out_count(job.data, train, held_out)),
    ]


def _samples(job: JobSpec, known: Known | None, param: str, problems: list[Problem]) -> SampleFacts | None:
    """Facts about the samples of one file; problems of its header are added to `problems`."""
    found = sample_facts(job.data, job.task_spec, known, param)
    if isinstance(found, SampleFacts):
        return found
    problems.extend(found)
    return None
