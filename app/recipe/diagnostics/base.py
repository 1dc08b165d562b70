"""What every diagnostic has: the kinds of output it analyses, and the rules about the samples that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from app.recipe.base import TaskOption
from app.recipe.problem import Problem


class DiagnosticSpec(TaskOption):
    """An analysis of the exported student beyond the metrics of its task."""

    applies: ClassVar[str] = ""
    """Its tasks in words."""
    fits: ClassVar[bool] = False
    """True when it fits something: half of the held-out samples, drawn by the job's seed, are kept for that, and the
    figures are those of the other half."""

    needs_teacher: ClassVar[bool] = False
    """True when it compares the student with a teacher."""

    def judged(self, left: int) -> int:
        """Number of samples for its figures, out of the `left` held-out samples that are not used for fitting."""
        return left

    def problems(self, path: str, judged: int) -> Iterator[Problem]:
        """Rules of a kind about the number of samples that its figures are measured on; `path` is where the job
        describes it."""
        yield from ()
