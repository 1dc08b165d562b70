"""The diagnostics that a job may ask for. Each has one class of the same kind in `worker/diagnostics`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from app.recipe.base import OneOf
from app.recipe.data.facts import Problem
from app.recipe.diagnostics.base import DiagnosticSpec
from app.recipe.diagnostics.calibration import Calibration
from app.recipe.tasks.task import Task

__all__ = ["DIAGNOSTICS", "Calibration", "Diagnostic", "DiagnosticSpec", "diagnostic_problems", "parts_of"]

DIAGNOSTICS: tuple[type[DiagnosticSpec], ...] = (Calibration,)
"""All kinds."""
Diagnostic = Annotated[DiagnosticSpec, OneOf(DIAGNOSTICS)]


def parts_of(held_out: int, diagnostic: DiagnosticSpec) -> tuple[int, int]:
    """Of so many held-out samples those that are (fitted on, measured on)."""
    fitted = held_out // 2 if diagnostic.fits else 0
    return fitted, held_out - fitted


def diagnostic_problems(diagnostics: Sequence[DiagnosticSpec], task: Task, held_out: int | None) -> Iterator[Problem]:
    """Diagnostics that make no sense for a task, or for so many held-out samples (None: not known yet)."""
    for index, diagnostic in enumerate(diagnostics):
        path = f"evaluation.diagnostics[{index}]"
        if task not in diagnostic.tasks:
            kind = type(diagnostic).model_fields["kind"].default
            yield Problem(f"{path}.kind", f"{kind} is not for {task}", "a diagnostic for this task, or none")
        elif held_out is not None:
            yield from diagnostic.problems(path, parts_of(held_out, diagnostic)[1])
