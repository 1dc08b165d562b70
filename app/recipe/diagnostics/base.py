"""Base of the diagnostics: kinds of output that they analyse, and rules about the samples that they need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from app.recipe.base import TaskOption
from app.recipe.problem import Problem


class DiagnosticSpec(TaskOption):
    """An analysis of the exported student beyond the metrics of its task."""

    applies: ClassVar[str] = ""
    """Its tasks, as text."""
    fits: ClassVar[bool] = False
    """True if it fits parameters: half of the held-out samples, drawn by the job's seed, are used for the fit, and the
    figures are measured on the other half."""

    needs_teacher: ClassVar[bool] = False
    """True when it compares the student with a teacher."""

    def judged(self, left: int) -> int:
        """Number of samples for its figures, out of the `left` held-out samples that are not used for fitting."""
        return left

    def problems(self, path: str, judged: int) -> Iterator[Problem]:
        """Problems of the number of samples that its figures are measured on; `path` is the path of its field."""
        yield from ()
