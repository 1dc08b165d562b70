"""Recipes that may be recommended for a job: each is one that the service accepts for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from app.recipe import defaults
from app.recipe.checks import InputFacts, find_problems
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recommendations.past import recipe_key

Document = Mapping[str, Any]
MAX_CANDIDATES = 100
"""Newest different recipes that are checked against the contract and compared."""
PLACEHOLDER: Document = {"losses": [{"kind": "cross-entropy"}]}
"""A recipe with which the other fields of a job are read; it is not checked."""


class Candidate(NamedTuple):
    """A recipe for the job."""

    recipe: dict[str, Any]
    """As the job document has it, all defaults filled in."""

    @property
    def key(self) -> str:
        """The same for the same recipes."""
        return recipe_key(self.recipe)


def with_recipe(document: Document, recipe: Document) -> JobSpec:
    """The job with a recipe. Raises `ValidationError`."""
    return JobSpec.model_validate_json(json.dumps({**document, "recipe": recipe}))


def accepted(document: Document, recipes: Iterable[Document], facts: InputFacts) -> list[Candidate]:
    """Those of the recipes with which the job is accepted, in the same order and without repetitions."""
    found: dict[str, Candidate] = {}
    for recipe in recipes:
        if len(found) == MAX_CANDIDATES:
            break
        try:
            spec = with_recipe(document, recipe)
        except ValidationError:  # a recipe of an older version of the contract
            continue
        if find_problems(spec, facts):
            continue
        resolved, _ = defaults.resolve(spec, facts.teachers)
        plain = resolved.recipe.model_dump(mode="json")
        found.setdefault(recipe_key(plain), Candidate(plain))
    return list(found.values())


def refusals(document: Document, recipe: Document, facts: InputFacts) -> list[Problem]:
    """The problems of the job with a recipe that fits its task."""
    return find_problems(with_recipe(document, recipe), facts)
