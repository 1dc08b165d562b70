"""Every task of the registry is complete, and rules use its object."""

from __future__ import annotations

from typing import get_args

import pytest

from app.recipe.base import EVERY_ANSWER
from app.recipe.data.augmentation import AUGMENTATIONS, CutMix, Mixup, TokenMask
from app.recipe.data.sources import FORMATS
from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES, BinaryKd, CrossEntropy, Hint, Kd, LogitMse, Mse, Uld
from app.recipe.optimizers import NormalizedGd
from app.recipe.students.hugging_face import MODEL_TYPES
from app.recipe.students.model import ModelConfig
from app.recipe.tasks import TASKS, TaskName, tasks_for, tasks_with
from app.recipe.tasks.base import MainMetric


def test_the_names_of_the_contract_are_those_of_the_registry() -> None:
    assert list(get_args(TaskName)) == list(TASKS)
    for schema in (JobSpec.model_json_schema(), ModelConfig.model_json_schema()):
        assert schema["properties"]["task"]["enum"] == list(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_whole(name: str) -> None:
    task = TASKS[name]
    main = task.main_metric
    assert task.name == name
    assert task.metrics[main.name] is main.higher_is_better
    assert main.tie_breaker is None or task.metrics[main.tie_breaker] is False
    assert main.stand_in is None or task.metrics[main.stand_in] is main.higher_is_better
    assert task.reads
    assert set(task.formats) <= set(FORMATS)
    assert set(task.model_types) <= set(MODEL_TYPES)
    assert any(task.fits(term) and term.needs_teacher is not True for term in LOSSES)
    assert any(task.fits(term) and term.needs_teacher is not False for term in LOSSES) is task.takes_teachers


def test_every_option_is_for_some_task() -> None:
    for option in (*LOSSES, *AUGMENTATIONS):
        assert option.answers <= EVERY_ANSWER
        assert tasks_for(option), option


@pytest.mark.parametrize(
    ("option", "tasks"),
    [
        (CrossEntropy, ["image-classification", "text-classification", "token-classification", "causal-lm"]),
        (Kd, ["image-classification", "text-classification", "token-classification", "causal-lm"]),
        (Uld, ["causal-lm"]),
        (Mse, ["regression", "keypoints"]),
        (Hint, [name for name in TASKS if name != "anomaly-detection"]),
        (BinaryKd, ["multi-label-classification"]),
        (
            LogitMse,
            [
                "image-classification",
                "text-classification",
                "multi-label-classification",
                "token-classification",
                "causal-lm",
            ],
        ),
        (Mixup, ["image-classification", "multi-label-classification", "regression"]),
        (CutMix, ["image-classification", "multi-label-classification"]),
        (
            TokenMask,
            ["text-classification", "multi-label-classification", "token-classification", "regression", "embedding"],
        ),
        (NormalizedGd, ["image-classification", "text-classification", "token-classification"]),
    ],
)
def test_options_fit_by_what_a_task_answers_and_reads(option: type, tasks: list[str]) -> None:
    assert tasks_for(option) == tasks


def test_a_field_names_the_tasks_that_it_is_for() -> None:
    assert tasks_with("evaluation.nme_points") == "keypoints"
    assert tasks_with("embedding") == "embedding, image-embedding, self-supervised"
    assert tasks_with("data.eval_input_columns") == "embedding, image-embedding"


def test_a_main_metric_compares_with_its_tie_breaker_and_its_stand_in() -> None:
    accuracy = MainMetric("accuracy", higher_is_better=True, tie_breaker="nll")
    assert accuracy.is_better({"accuracy": 0.5, "nll": 1.0}, {"accuracy": 0.5, "nll": 2.0})
    assert not accuracy.is_better({"accuracy": 0.5, "nll": 1.0}, {"accuracy": 0.5, "nll": 1.0})
    assert MainMetric("rmse", higher_is_better=False).is_better({"rmse": 1.0}, {"rmse": 2.0})
    assert accuracy.ratio(0.6, 0.8) == pytest.approx(0.75)
    assert MainMetric("rmse", higher_is_better=False).ratio(4.0, 3.0) == pytest.approx(0.75)
    assert accuracy.ratio(0.5, 0.0) is None
    assert MainMetric("rmse", higher_is_better=False).ratio(0.0, 3.0) is None
    assert MainMetric("spearman", higher_is_better=True).ratio(-0.1, 0.5) is None
    spearman = MainMetric("spearman", higher_is_better=True, stand_in="mrr")
    assert spearman.of({"mrr": 0.5}) == "mrr"
    assert spearman.is_better({"mrr": 0.5}, {"mrr": 0.4})
