"""Base classes of the loss terms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from app.recipe.base import Answer, TaskOption
from app.recipe.losses.taps import Taps
from app.recipe.losses.weights import Weight
from app.recipe.problem import Problem
from app.recipe.teachers.teacher import TeacherName

Temperature = Annotated[float, Field(gt=0.0, le=1000.0)]
"""Divisor of logits. Above 1000 a divergence is lost in rounding; `logit-mse` is its limit."""


BY_ROW: frozenset[Answer] = frozenset({"classes", "tokens"})
"""Kinds of output of a term that is computed per row of logits: of a sample, or of the next token."""


class LossSpec(TaskOption):
    """Base of the terms: weight in the objective, teacher, and requirements."""

    needs_teacher: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    """True if the loss of a row depends on the others of its batch, so that a batch can't be split."""
    gathers: ClassVar[bool] = False
    """True if a term that couples rows uses those of all processes, so that each may have a share of the batch."""
    views: ClassVar[int] = 1
    """Augmented views of each sample in a batch, which are consecutive rows."""
    joint: ClassVar[bool] = False
    """True if the term uses several teachers at once, instead of being computed for each."""
    any_tokens: ClassVar[bool] = False
    """True if a teacher of a language model may have another tokenizer than the student."""
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    equation: ClassVar[str] = ""
    applies: ClassVar[str] = "Classification with a teacher of the same classes."
    weight: Weight = 1.0
    """Factor of this term in the objective: a number, or a ramp over a stage."""
    teacher: TeacherName | None = None
    """Name of the teacher to use; none: all of them, each with its weight."""

    @property
    def reads_weights(self) -> bool:
        """Whether it depends on weights of the student beside its outputs."""
        return False

    @property
    def needs_plain_steps(self) -> bool:
        """Whether it is only for methods whose steps are those of `supervised` (see `MethodSpec.plain_steps`)."""
        return self.reads_weights

    @classmethod
    def couples(cls, answer: Answer) -> bool:
        """Whether it couples the rows of a batch in a task with this kind of output; see `couples_rows`."""
        return cls.couples_rows

    @classmethod
    def why_not_by_token(cls) -> str:
        """Why it is not for a task that asks for a class of every token; empty: it is."""
        return "it compares the rows of a batch with each other, and a row is a token here" if cls.couples_rows else ""

    def by_token_problems(self, path: str) -> Iterator[Problem]:
        """Settings with which it is not for such a task, although others are; `path` is where the job lists it."""
        yield from ()

    def taps(self) -> Taps:
        """The activations that the term uses."""
        return Taps()

    def named_teachers(self) -> dict[str, str]:
        """Names of teachers, by their field."""
        return {"teacher": self.teacher} if self.teacher is not None else {}


class Softened(LossSpec):
    """A term that depends only on the softened distributions of both sides."""

    temperature: Temperature = 1.0
    """Divides both sides' logits; the value is not multiplied by its square."""
    standardize: bool = False
    """Standardises each side's logits to mean 0 and standard deviation 1 per row first, so that only their relations
    count (Logit Standardization in Knowledge Distillation, arXiv 2403.01427: there with a temperature of 2 and a weight
    of 9 for `kd`)."""
