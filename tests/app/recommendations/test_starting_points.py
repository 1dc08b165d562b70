"""The defaults are recipes of their tasks, every task has some, and the page lists them as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.recipe.job import Recipe
from app.recipe.tasks import TASKS
from app.recommendations.service import starting_points
from app.recommendations.starting_points import STARTING_POINTS, StartingPoint, table

PAGE = Path(__file__).parents[3] / "docs" / "choosing.md"


def test_the_page_lists_them() -> None:
    _, _, rest = PAGE.read_text().partition("<!-- defaults: begin -->\n")
    assert rest.partition("\n<!-- defaults: end -->")[0] == table()


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_has_some(task: object) -> None:
    assert starting_points(task.answers)  # type: ignore[attr-defined]


@pytest.mark.parametrize("point", STARTING_POINTS, ids=lambda point: point.name)
def test_each_is_a_recipe_with_losses_for_its_kind_of_output(point: StartingPoint) -> None:
    losses = Recipe.model_validate(point.recipe).losses
    assert all(point.answers in loss.answers for loss in losses)
    in_student = point.answers == "anomalies"  # whose teacher is the encoder within the student
    assert in_student or any(loss.needs_teacher for loss in losses)
