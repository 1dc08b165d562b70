"""Checks of the module paths in losses, for networks whose paths are known without building them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.recipe.job import JobSpec
from app.recipe.losses import Loss
from app.recipe.losses.taps import Tap
from app.recipe.problem import Problem
from app.recipe.students.derived import network_of
from app.recipe.students.model import ModelConfig
from app.recipe.students.module_paths import module_paths, suggestions
from app.recipe.students.shrink import Unshrinkable


def module_problems(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Problems of paths that a built-in student or teacher does not have. `teachers` are descriptions by reference."""
    student = _student_paths(job, teachers)
    known = {
        teacher.name: module_paths(teachers[teacher.reference].architecture)
        for teacher in job.all_teachers
        if teacher.reference in teachers
    }
    for path, terms in job.objectives.items():
        for index, term in enumerate(terms):
            named = {name: known.get(name) for name in term.named_teachers().values() or known}
            yield from _term_problems(term, f"{path}[{index}]", student, named)


def _student_paths(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> list[str] | None:
    try:
        network = network_of(job, teachers)
    except Unshrinkable:
        return None  # reported elsewhere
    return None if network is None else module_paths(network)


def _term_problems(
    term: Loss, path: str, student: list[str] | None, teachers: Mapping[str, list[str] | None]
) -> Iterator[Problem]:
    fields = {id(tap): field for field, tap in _taps_in(term, path)}
    taps = term.taps()
    for tap in taps.student:
        if student is not None and tap.path not in student:
            yield _problem(fields.get(id(tap), path), "the student", tap, student)
    for tap in taps.teacher:
        for name, known in teachers.items():
            if known is not None and tap.path not in known:
                yield _problem(fields.get(id(tap), path), f"teacher {name!r}", tap, known)


def _taps_in(value: Any, path: str) -> Iterator[tuple[str, Tap]]:
    """Every tap of a term, with the path of its field."""
    if isinstance(value, Tap):
        yield path, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _taps_in(item, f"{path}[{index}]")
    elif hasattr(value, "model_fields_set"):
        for field in type(value).model_fields:
            yield from _taps_in(getattr(value, field), f"{path}.{field}")


def _problem(field: str, whose: str, tap: Tap, known: Sequence[str]) -> Problem:
    return Problem(
        field, f"{whose} has no module {tap.path!r}", "a path such as " + ", ".join(suggestions(tap.path, known))
    )
