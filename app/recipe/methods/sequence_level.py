"""Sequence-level distillation of language models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from app.recipe.base import Paper, Share
from app.recipe.methods.base import FIELD
from app.recipe.methods.text_generation import TextGeneration, TopK
from app.recipe.problem import Problem
from app.recipe.teachers.teacher import TeacherName

if TYPE_CHECKING:
    from app.recipe.job import JobSpec


class SequenceLevel(TextGeneration):
    """Sequence-level distillation: a teacher generates texts before training begins, and the student is trained on them
    as on those of the data.

    One text is generated for every prompt of the data. The paper uses beam search; here it is greedy decoding, or with
    another `top_k` sampling.
    """

    paper: ClassVar[Paper | None] = Paper("Sequence-Level Knowledge Distillation", "1606.07947")
    applies: ClassVar[str] = (
        "Language models, when the teacher's texts are better targets than those of the data, or when the teacher "
        "can't run beside the student."
    )
    cost: ClassVar[str] = (
        "Before training the teacher generates a text for every prompt, once for all jobs with the same prompts; "
        "steps cost as usual."
    )
    kind: Literal["sequence-level"] = "sequence-level"
    share: Share = 1.0
    """Share of the steps of the main training whose batch is from the generated texts, drawn step by step; the others
    use the data."""
    top_k: TopK | None = 1
    """Number of likeliest tokens to sample from; 1: always the likeliest, none: all."""
    writer: TeacherName | None = None
    """Name of the teacher that generates the texts; none: the only one."""

    @property
    def learns_from_teacher(self) -> bool:
        return True

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        yield from super().problems(job)
        names = [teacher.name for teacher in job.all_teachers]
        if self.writer is None and len(names) > 1:
            yield Problem(f"{FIELD}.writer", "is missing, and there are several teachers", f"one of {', '.join(names)}")
        elif self.writer is not None and names and self.writer not in names:
            yield Problem(f"{FIELD}.writer", f"there is no teacher {self.writer!r}", f"one of {', '.join(names)}")
