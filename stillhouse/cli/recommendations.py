"""Recommended recipes for people: a table, and the best one as it goes into the job."""

from __future__ import annotations

from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.text import Text

from stillhouse import LearnedFrom, Recommendation, RecommendedRecipe
from stillhouse.cli.views import table


def recommendation(item: Recommendation) -> RenderableType:
    """The recipes with their expected ratios, what they were learned from, and the best as YAML."""
    rows = table("", "losses", "method", "expected ratio", "from", "to", "past jobs", "measured")
    for number, found in enumerate(item.recipes, start=1):
        rows.add_row(str(number), *_cells(found))
    learned = item.basis == "past_jobs"
    heading = "learned from past jobs" if learned else "defaults"
    parts: list[RenderableType] = [
        Text.assemble((heading, "green" if learned else "yellow"), f": {item.reason}"),
        *([Text(_quality(item.learned_from), style="dim")] if learned else []),
        *(Text(note, style="dim") for note in item.notes),
        Text(""),
        rows,
    ]
    if item.recipes:
        best = yaml.safe_dump({"recipe": item.recipes[0].recipe}, sort_keys=False)
        parts += [Text(""), Text("the first one:", style="dim"), Text(best.rstrip())]
    return Group(*parts)


def _cells(found: RecommendedRecipe) -> list[str]:
    recipe: dict[str, Any] = found.recipe
    losses = [f"{loss.get('weight', 1):g} {loss['kind']}" for loss in recipe["losses"]]
    method = (recipe.get("method") or {}).get("kind", "")
    ratios = [_number(value) for value in (found.expected_ratio, found.lowest_ratio, found.highest_ratio)]
    return [" + ".join(losses), method, *ratios, ", ".join(found.job_ids[:2]), found.reason or ""]


def _quality(learned: LearnedFrom) -> str:
    error, ranks = _number(learned.mean_absolute_error), _number(learned.rank_correlation)
    return f"on data sets left out of the fit: mean absolute error of the ratio {error}, rank correlation {ranks}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
