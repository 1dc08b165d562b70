"""Jobs with any number of classes per sample: valid combinations, and refusals with their reasons."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import ArrayFacts
from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES
from app.recipe.losses.features import FeatureTerm
from app.recipe.students.model import ModelConfig
from app.recipe.tasks import TASKS
from tests.kinds import SETTINGS

Document = dict[str, Any]
TASK = "multi-label-classification"
TEXTS: Document = {"train": "f", "format": "csv", "input_columns": ["a"], "label_columns": ["b"]}
FLAGS: Document = {"train": "f", "format": "parquet", "input_columns": ["a"], "label_columns": ["b", "c"]}
BERT: Document = {"architecture": "transformers", "config": {"model_type": "bert", "hidden_size": 8}}
TAUGHT: Document = {"teacher": {"model": "t"}, "recipe": {"losses": [{"kind": "binary-kd"}]}}
FITTING = {"binary-cross-entropy", "binary-kd", "logit-mse", "dexml"}
"""Losses of logits that look at each label by itself, or choose any number of them."""


def job(**changes: Any) -> JobSpec:
    losses = [{"kind": "binary-cross-entropy"}]
    base = {"task": TASK, "data": {"train": "f"}, "student": {"architecture": "mlp"}, "recipe": {"losses": losses}}
    return JobSpec.model_validate(base | changes)


def problems(facts: InputFacts = InputFacts(), **changes: Any) -> dict[str, str]:
    found = find_problems(job(**changes), facts)
    return {problem.param: f"{problem.message}; {problem.accepted}" for problem in found}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": TEXTS, "student": BERT},
        {"data": FLAGS, "student": BERT},
        {"data": {**TEXTS, "label_separator": ", "}, "student": BERT},
        {"data": {**TEXTS, "delimiter": "|"}, "student": BERT},
        {"data": {**TEXTS, "delimiter": "|", "quoted": False, "label_separator": ";"}, "student": BERT},
        {"data": {"train": "f", "classes": 4, "class_order": ["a", "b", "c", "d"]}},
        {"data": {"train": "f", "augment": [{"kind": "mixup"}, {"kind": "cutmix"}]}},
        {"data": {**TEXTS, "augment": [{"kind": "token-mask"}]}, "student": BERT},
        TAUGHT,
        {**TAUGHT, "recipe": {"losses": [{"kind": "logit-mse"}, {"kind": "binary-cross-entropy", "pos_weight": 3.0}]}},
    ],
)
def test_what_goes_together_has_no_problem(changes: Document) -> None:
    assert problems(**changes) == {}


@pytest.mark.parametrize(
    ("changes", "param", "told"),
    [
        ({"data": {**TEXTS, "label_columns": []}, "student": BERT}, "data.label_columns", "is missing"),
        (
            {"data": {**TEXTS, "delimiter": "|", "quoted": False}, "student": BERT},
            "data.label_separator",
            "another separator",
        ),
        ({"data": {"train": "f", "format": "image-folder"}}, "data.format", "npz, csv, jsonl, parquet or hf-dataset"),
        (
            {**TAUGHT, "recipe": {"losses": [{"kind": "logit-mse", "centered": True}]}},
            "recipe.losses[0].centered",
            "the mean of the logits counts",
        ),
        ({**TAUGHT, "teacher_cache": {"store": "top-k", "k": 2}}, "teacher_cache.store", "are no distributions"),
        ({**TAUGHT, "teacher_weighting": "entropy"}, "teacher_weighting", "are no distributions"),
        (
            {"recipe": {"losses": [{"kind": "binary-cross-entropy"}], "method": {"kind": "mutual"}}},
            "recipe.method.kind",
            "mutual",
        ),
        ({"evaluation": {"diagnostics": [{"kind": "calibration"}]}}, "evaluation.diagnostics[0].kind", "calibration"),
    ],
)
def test_what_can_t_work_is_refused_by_its_field(changes: Document, param: str, told: str) -> None:
    found = problems(**changes)
    assert param in found
    assert told in found[param]


def test_losses_of_a_softmax_are_refused_and_those_of_features_are_not() -> None:
    fitting = {term.model_fields["kind"].default for term in LOSSES if TASKS[TASK].fits(term)}
    of_features = {term.model_fields["kind"].default for term in LOSSES if issubclass(term, FeatureTerm)}
    assert fitting == FITTING | of_features
    others = [term.model_fields["kind"].default for term in LOSSES if not TASKS[TASK].fits(term)]
    for kind in others:
        losses = [{"kind": "binary-cross-entropy"}, {"kind": kind, **SETTINGS.get(kind, {})}]
        found = problems(**{**TAUGHT, "recipe": {"losses": losses}})
        assert found["recipe.losses[1].kind"] == f"{kind} is not for {TASK}; a loss for this task"


def test_its_losses_are_refused_for_other_tasks() -> None:
    found = problems(task="image-classification")
    assert "binary-cross-entropy is not for image-classification" in found["recipe.losses[0].kind"]


def test_a_separator_of_labels_is_for_this_task_alone() -> None:
    data = {**TEXTS, "label_separator": ";"}
    losses = [{"kind": "cross-entropy"}]
    found = problems(task="text-classification", data=data, student=BERT, recipe={"losses": losses})
    assert found == {"data.label_separator": f"is for {TASK}, the task is text-classification; none"}
    with pytest.raises(ValidationError, match="label_separator"):
        job(data={**TEXTS, "label_separator": ""})


@pytest.mark.parametrize(
    ("shape", "dtype", "fits"),
    [
        ((9, 3), "u1", True),
        ((9, 3), "b1", True),
        ((9, 3), "f4", True),
        ((9, 3), "i8", True),
        ((9,), "i8", False),
        ((9, 1), "i8", False),
        ((9, 3, 1), "u1", False),
        ((9, 3), "U4", False),
    ],
)
def test_labels_of_an_archive_are_a_row_for_each_sample(shape: tuple[int, ...], dtype: str, fits: bool) -> None:
    facts = InputFacts({"x": ArrayFacts((9, 8, 8), "u1"), "y": ArrayFacts(shape, dtype)})
    found = problems(facts)
    assert found == ({} if fits else {"data.train": found.get("data.train", "")})
    assert fits or "(N, C) of 0 and 1" in found["data.train"]


def test_a_teacher_is_one_for_this_task_with_classes_of_the_same_names() -> None:
    teacher: Document = {"architecture": BERT, "input": {"length": 8, "vocabulary": 9}, "classes": 2}
    other = ModelConfig.model_validate({**teacher, "task": "text-classification"})
    changes = {**TAUGHT, "data": TEXTS, "student": BERT}
    assert problems(InputFacts(teachers={"t": other}), **changes) == {
        "teacher.model": f"was made for text-classification; a model for {TASK}"
    }
    same = ModelConfig.model_validate({**teacher, "task": TASK, "class_names": ["a", "b"]})
    data = {**TEXTS, "class_order": ["a", "z"]}
    assert (
        "only data.class_order has 'z'"
        in problems(InputFacts(teachers={"t": same}), **{**changes, "data": data})["teacher.model"]
    )


def test_a_model_for_it_has_classes_and_gives_logits() -> None:
    fields: Document = {"task": TASK, "architecture": BERT, "input": {"length": 8, "vocabulary": 9}}
    model = ModelConfig.model_validate({**fields, "classes": 3})
    assert (model.outputs, model.gives_logits, model.has_head, model.predicts_tokens) == (3, True, True, False)
    with pytest.raises(ValidationError, match="has classes and no targets"):
        ModelConfig.model_validate({**fields, "targets": 3})
