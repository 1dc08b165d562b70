"""What is kept of a teacher's answers, so that later epochs, attempts and jobs need not run it.

Answers are kept on the worker's disk, by content: jobs with the same teacher, the same samples, the same augmentation
and the same choice here share them. Keeping less than all (`top-k`, or 16 bits) changes what the student learns from in
the same way whether an answer was just given or was kept.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.recipe.base import Option

DEFAULT_BYTES = 20 << 30
"""Disk space that the kept answers on one machine may take unless a setting says otherwise."""

Dtype = Literal["fp32", "fp16", "bf16"]


class DenseCache(Option):
    """Every number of an answer; in fp32 nothing is lost. Nothing is kept of a language model, whose answers are a
    vocabulary's logits at every token; of a tagger, the logits of every token."""

    store: Literal["dense"] = "dense"
    """What is kept of an answer: all of it."""
    dtype: Dtype = "fp32"
    """How numbers are kept. fp16 has 11 significant bits and refuses what exceeds 65504; bf16 has 8 and any size."""

    @property
    def exact(self) -> bool:
        """Whether nothing is lost."""
        return self.dtype == "fp32"


class TopKCache(Option):
    """The `k` largest logits of an answer, and the mass of all others together.

    Probabilities of the kept classes are exact at temperature 1 (up to the rounding of `dtype`), and so is the sum of
    the others, which get equal parts of it. At higher temperatures the others' share is too large, because equal parts
    are the flattest way to spread it: keep more classes then.
    """

    store: Literal["top-k"] = "top-k"
    """What is kept of an answer: its largest logits."""
    k: int = Field(ge=1, le=100_000)
    """Logits kept of each answer; at most the number of classes."""
    dtype: Dtype = "fp32"
    """How the logits are kept; see `dense`. The mass of the others is always fp32."""

    @property
    def exact(self) -> bool:
        """Whether nothing is lost."""
        return False


class NoCache(Option):
    """Nothing: the teacher is asked every time."""

    store: Literal["off"] = "off"
    """What is kept of an answer: nothing."""


TeacherCache = Annotated[DenseCache | TopKCache | NoCache, Field(discriminator="store")]
TEACHER_CACHES: tuple[type[Option], ...] = (DenseCache, TopKCache, NoCache)
Kept = DenseCache | TopKCache
"""A choice that keeps something."""
