"""Features are named numbers: choices and numbers of the recipe, sizes, and the embedding."""

from __future__ import annotations

import math

import pytest

from app.recommendations.features import DataFacts, Distillation, ModelFacts, columns_of, matrix

RECIPE = {
    "losses": [{"kind": "cross-entropy", "weight": 0.1}, {"kind": "kd", "weight": 0.9, "temperature": 4.0}],
    "optimizer": {"kind": "adamw", "lr": 0.01, "groups": []},
    "epochs": 5,
    "clip_norm": None,
    "checkpoint": {"every_seconds": 60.0},
}
ONE = Distillation(
    DataFacts("image-classification", 1000, 10, (0.5, -1.0)),
    ModelFacts({"architecture": "mlp", "hidden": [64, 64]}, 10_000, 0.9),
    ModelFacts({"architecture": "mlp", "hidden": [8]}, 100),
    RECIPE,
)


def test_everything_that_matters_is_a_feature() -> None:
    found = ONE.features()
    expected = {
        "data.task=image-classification": 1.0,
        "log data.samples": 3.0,
        "log data.outputs": 1.0,
        "data.embedding.0": 0.5,
        "data.embedding.1": -1.0,
        "log teacher.parameters": 4.0,
        "log student.parameters": 2.0,
        "log compression": 2.0,
        "teacher.score": 0.9,
        "teacher.architecture=mlp": 1.0,
        "teacher.hidden.length": 2.0,
        "teacher.hidden.sum": 128.0,
        "student.hidden.sum": 8.0,
        "recipe.losses.length": 2.0,
        "recipe.losses.kd.weight": 0.9,
        "recipe.losses.kd.temperature": 4.0,
        "recipe.losses.kd.kind=kd": 1.0,
        "recipe.losses.cross-entropy.weight": 0.1,
        "recipe.optimizer.lr": 0.01,
        "recipe.optimizer.kind=adamw": 1.0,
        "recipe.epochs": 5.0,
    }
    assert {name: found.get(name) for name in expected} == pytest.approx(expected)
    assert not any("checkpoint" in name or "clip_norm" in name for name in found)


def test_the_order_of_losses_does_not_matter() -> None:
    turned = {**RECIPE, "losses": RECIPE["losses"][::-1]}  # type: ignore[index]
    assert ONE._replace(recipe=turned).features() == ONE.features()


def test_of_new_data_nothing_is_known_that_only_a_run_measures() -> None:
    gone = ONE.features().keys() - ONE.as_of_new_data().features().keys()
    assert gone == {"data.embedding.0", "data.embedding.1", "teacher.score"}


def test_unknown_facts_are_left_out() -> None:
    unknown = Distillation(DataFacts("causal-lm"), ModelFacts(), ModelFacts(), {})
    assert unknown.features() == {"data.task=causal-lm": 1.0}


def test_a_choice_that_was_not_made_is_zero_and_a_number_that_is_missing_is_nan() -> None:
    rows = [{"a=x": 1.0, "b": 2.0, "same": 1.0}, {"c": 3.0, "same": 1.0}]
    columns = columns_of(rows)
    assert columns == ["a=x", "b", "c"]
    first, second = matrix(rows, columns)
    assert first[:2] == [1.0, 2.0]
    assert math.isnan(first[2])
    assert second[0] == 0.0
    assert math.isnan(second[1])
