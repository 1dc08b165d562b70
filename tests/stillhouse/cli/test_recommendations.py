"""What people see of a recommendation: where it comes from, the recipes, and the best one to copy."""

from __future__ import annotations

from io import StringIO

import yaml
from rich.console import Console

from stillhouse import LearnedFrom, Recommendation, RecommendedRecipe
from stillhouse.cli.recommendations import recommendation

RECIPE = {"losses": [{"kind": "cross-entropy"}, {"kind": "kd", "weight": 0.9}], "epochs": 5}


def printed(item: Recommendation) -> str:
    output = StringIO()
    Console(file=output, width=200).print(recommendation(item))
    return output.getvalue()


def test_learned_recipes_come_with_their_expectation_and_its_quality() -> None:
    found = RecommendedRecipe(
        recipe=RECIPE, expected_ratio=0.95, lowest_ratio=0.9, highest_ratio=0.97, job_ids=["job_1"]
    )
    learned = LearnedFrom(jobs=12, data_sets=3, mean_absolute_error=0.02, rank_correlation=0.5)
    text = printed(
        Recommendation(
            basis="past_jobs", reason="12 past jobs", recipes=[found], learned_from=learned, notes=["unknown"]
        )
    )
    for part in ("learned from past jobs", "0.950", "0.900", "0.970", "job_1", "rank correlation 0.500", "unknown"):
        assert part in text
    assert "1 cross-entropy + 0.9 kd" in text
    _, _, best = text.partition("the first one:")
    assert yaml.safe_load(best) == {"recipe": RECIPE}


def test_defaults_say_why() -> None:
    found = RecommendedRecipe(recipe=RECIPE, reason="measured on digits")
    text = printed(
        Recommendation(
            basis="defaults", reason="too few", recipes=[found], learned_from=LearnedFrom(jobs=0, data_sets=0)
        )
    )
    for part in ("defaults", "too few", "measured on digits"):
        assert part in text
    assert "rank correlation" not in text
