"""What every diagnostic has: the tasks it is for, and the rules about the samples that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from app.recipe.base import Option
from app.recipe.data.facts import Problem
from app.recipe.tasks.task import Task


class DiagnosticSpec(Option):
    """An analysis of the exported student beyond the metrics of its task."""

    tasks: ClassVar[tuple[Task, ...]] = ()
    """Tasks whose models answer with what it analyses."""
    applies: ClassVar[str] = ""
    """The same in words."""
    fits: ClassVar[bool] = False
    """True when it fits something: half of the held-out samples, drawn by the job's seed, are kept for that, and the
    figures are those of the other half."""

    def problems(self, path: str, judged: int) -> Iterator[Problem]:
        """Rules of a kind about the number of samples that its figures are measured on; `path` is where the job
        describes it."""
        yield from ()
