"""Jobs with so many labels that their targets are lists: what they can't have is refused before any data is read."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import ArrayFacts
from app.recipe.job import JobSpec
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.tasks.multi_label import LISTED_METRICS, MANY_LABELS, MultiLabelSpec
from worker.tasks.multi_label import LABELS, LEFT_OUT

Document = dict[str, Any]
MANY, FEW = 100_000, MANY_LABELS
BERT: Document = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2}


def problems(count: int | None, facts: InputFacts = InputFacts(), **changes: Any) -> dict[str, str]:
    data = {"train": "f", "format": "jsonl", "input_columns": ["a"], "label_columns": ["b"], "max_length": 8}
    document: Document = {
        "task": "multi-label-classification",
        "data": {**data, "classes": count, **changes.pop("data", {})},
        "student": {"architecture": "transformers", "config": BERT},
        "recipe": {"losses": [{"kind": "binary-cross-entropy"}], **changes.pop("recipe", {})},
        **changes,
    }
    found = find_problems(JobSpec.model_validate(document), facts)
    return {problem.param: f"{problem.message}; {problem.accepted}" for problem in found}


ONE, TWO = {"teacher": {"model": "t"}}, {"teachers": [{"model": "t", "name": "a"}, {"model": "u", "name": "b"}]}
REFUSED: list[tuple[str, Document]] = [
    ("export", {"export": ["safetensors", "onnx", "onnx-int8"]}),
    ("recipe.method.kind", {**ONE, "recipe": {"losses": [{"kind": "binary-kd"}], "method": {"kind": "online"}}}),
    ("teachers", {**TWO, "recipe": {"losses": [{"kind": "binary-kd"}]}}),
    ("evaluation.require_teacher.map", {**ONE, "evaluation": {"require_teacher": {"map": 0.1}}}),
]


@pytest.mark.parametrize(("param", "changes"), REFUSED)
def test_what_needs_a_number_for_each_label_is_refused_by_name(param: str, changes: Document) -> None:
    assert param not in problems(FEW, **changes)
    assert problems(MANY, **changes)[param].startswith(f"does not work with {MANY} labels, whose targets are lists")


def test_mixed_images_are_refused() -> None:
    data = {"train": "f", "augment": [{"kind": "flip"}, {"kind": "mixup"}]}
    base: Document = {"task": "multi-label-classification", "student": {"architecture": "mlp"}}
    base |= {"data": data, "recipe": {"losses": [{"kind": "binary-cross-entropy"}]}}
    for count in (FEW, MANY):
        labels = {"x": ArrayFacts((5, 8, 8), "u1"), "y": ArrayFacts((5, count), "u1")}
        found = {each.param for each in find_problems(JobSpec.model_validate(base), InputFacts(train=labels))}
        assert ("data.augment[1].kind" in found) == (count == MANY)


def test_what_lists_do_have_is_accepted() -> None:
    required = dict.fromkeys(LISTED_METRICS, 0.1)
    more = {"recipe": {"losses": [{"kind": "binary-kd"}, {"kind": "dexml"}]}}
    assert problems(MANY, **ONE, **more, evaluation={"require_teacher": required}, export=["safetensors"]) == {}


def test_a_single_teacher_s_names_are_the_labels() -> None:
    text = TextInput(length=32, vocabulary=520)
    for names, refused in (([f"n{number}" for number in range(MANY)], True), (None, False)):
        known = ModelConfig.model_validate(
            {
                "task": "multi-label-classification",
                "architecture": {"architecture": "transformers", "config": BERT},
                "input": text,
                "classes": MANY,
                "class_names": names,
            }
        )
        found = problems(None, InputFacts(teachers={"t": known}), **ONE, export=["safetensors", "onnx", "onnx-int8"])
        assert ("export" in found) == refused


def test_every_metric_is_there_or_left_out() -> None:
    assert {*LISTED_METRICS, *LEFT_OUT} == {*MultiLabelSpec.metrics, "agreement", "kl"}
    assert set(LISTED_METRICS) <= set(LABELS.metrics)
