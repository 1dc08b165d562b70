"""Rules of a language model's teacher with another tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES
from app.recipe.problem import Problem
from app.recipe.teachers.cache import TopKCache

ANY_TOKENS = " or ".join(term.model_fields["kind"].default for term in LOSSES if term.any_tokens)
"""Kinds of losses for such teachers."""


def other_tokens_problems(job: JobSpec, name: str) -> Iterator[Problem]:
    """Problems of losses and cache that need the tokens of student and the teacher called `name` to be the same."""
    for path, terms in job.objectives.items():
        for index, term in enumerate(terms):
            learns = term.needs_teacher and name in (term.named_teachers().values() or [name])
            if learns and not term.any_tokens:
                found = f"{term.kind} compares token with token, and {name!r} has another tokenizer than the student"
                yield Problem(f"{path}[{index}].kind", found, f"{ANY_TOKENS}, or a teacher with the same tokenizer")
    if isinstance(job.teacher_cache, TopKCache):
        found = f"is top-k, and nothing is kept of {name!r}, which has another tokenizer than the student"
        yield Problem("teacher_cache.store", found, "dense or off, with which it runs on every batch")
