"""Recommended recipes for a job, and what they were learned from."""

from __future__ import annotations

from typing import Any, Literal

from app.core.views import View


class RecommendedRecipeView(View):
    """A recipe that the service accepts for the job."""

    recipe: dict[str, Any]
    """The `recipe` for the job."""
    expected_ratio: float | None = None
    """Expected score of the student as a share of its teacher's, by the task's main metric (for an error: the
    teacher's as a share of the student's), so that more is better; null for a default."""
    lowest_ratio: float | None = None
    """Smallest ratio expected by the models that were fitted without a part of the data sets."""
    highest_ratio: float | None = None
    """Largest ratio expected by these models."""
    job_ids: list[str] = []
    """Newest past jobs with this recipe, at most ten; empty for a default."""
    reason: str | None = None
    """Why it is a default; null if it was learned."""


class LearnedFromView(View):
    """The past jobs of the project, and how well ratios are predicted for data sets that the model has not seen."""

    jobs: int
    """Succeeded jobs with a teacher and the same task, of all that were used."""
    data_sets: int
    """Different training files of these jobs."""
    job_ids: list[str] = []
    """All jobs that were used, of other tasks too, newest first."""
    mean_absolute_error: float | None = None
    """Mean absolute error of the ratio on data sets that were left out of the fit; null: not measured."""
    rank_correlation: float | None = None
    """Spearman's rank correlation between expected and measured ratios of a left-out data set's jobs, averaged over
    data sets; null: not measured."""


class RecommendationView(View):
    """Recipes for a job, best first."""

    object: Literal["recommendation"] = "recommendation"
    basis: Literal["past_jobs", "defaults"]
    """Whether the recipes were learned from past jobs, or are defaults."""
    reason: str
    """Why there are defaults, or what the order was learned from."""
    recipes: list[RecommendedRecipeView]
    """The recipes, best first."""
    learned_from: LearnedFromView
    """What there was to learn from."""
    notes: list[str] = []
    """What was unknown about the job's data or teacher."""
