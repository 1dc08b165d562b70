"""Rules of a job's data: formats, columns and augmentations of every task."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.data.facts import SampleFacts
from app.recipe.data.rules import data_problems
from app.recipe.students.inputs import ImageInput, TableInput, TextInput
from app.recipe.tasks import TaskName, task_of
from tests.app.recipe.data.builders import COLUMNS, options

SQUARE = ImageInput(channels=3, height=8, width=8)
PIXELS = SampleFacts(10, SQUARE, 192, pixels=True)


@pytest.mark.parametrize(
    ("task", "fields", "param"),
    [
        ("text-classification", {}, "data.format"),
        ("image-classification", {"format": "csv", **COLUMNS}, "data.format"),
        ("keypoints", {"format": "jsonl", **COLUMNS}, "data.format"),
        ("regression", {"format": "image-folder"}, "data.format"),
        ("regression", {"classes": 3}, "data.classes"),
        ("text-classification", {"format": "csv", **COLUMNS, "label_columns": ["b", "c"]}, "data.label_columns"),
        ("text-classification", {"format": "csv", **COLUMNS, "input_columns": ["b", "c", "d"]}, "data.input_columns"),
    ],
)
def test_a_format_must_hold_what_the_task_is_about(task: TaskName, fields: dict[str, Any], param: str) -> None:
    assert [problem.param for problem in data_problems(options(**fields), task_of(task), None)] == [param]


@pytest.mark.parametrize(
    ("task", "step", "facts", "field"),
    [
        ("keypoints", {"kind": "flip"}, None, "pairs"),
        ("keypoints", {"kind": "mixup"}, None, "kind"),
        ("keypoints", {"kind": "rand-augment"}, None, "kind"),
        ("keypoints", {"kind": "flip", "pairs": [[0, 1], [1, 2]]}, None, "pairs"),
        ("keypoints", {"kind": "flip", "pairs": [[0, 3]]}, SampleFacts(9, SQUARE, 192, targets=6), "pairs"),
        ("image-classification", {"kind": "flip", "pairs": [[0, 1]]}, None, "pairs"),
        ("image-classification", {"kind": "token-mask"}, None, "kind"),
        ("image-classification", {"kind": "crop", "padding": 9}, PIXELS, "padding"),
        ("image-classification", {"kind": "rand-augment"}, SampleFacts(9, SQUARE, 768), "kind"),
        ("image-classification", {"kind": "self-mix"}, None, "kind"),
        ("regression", {"kind": "cutmix"}, None, "kind"),
        ("regression", {"kind": "crop"}, SampleFacts(9, TableInput(columns=3), 12, targets=1), "kind"),
        ("regression", {"kind": "mixup"}, SampleFacts(9, TextInput(length=9, vocabulary=9), 72, targets=1), "kind"),
    ],
)
def test_an_augmentation_must_make_sense(task: TaskName, step: dict[str, Any], facts: Any, field: str) -> None:
    found = list(data_problems(options(augment=[step]), task_of(task), facts))
    assert [problem.param for problem in found] == [f"data.augment[0].{field}"]


@pytest.mark.parametrize(
    ("task", "steps", "facts"),
    [
        ("image-classification", [{"kind": "crop"}, {"kind": "rand-augment"}, {"kind": "self-mix"}], PIXELS),
        ("keypoints", [{"kind": "flip", "pairs": [[0, 2]]}], SampleFacts(9, SQUARE, 192, targets=6)),
        ("regression", [{"kind": "mixup"}], SampleFacts(9, TableInput(columns=3), 12, targets=1)),
    ],
)
def test_sound_augmentations_have_no_problem(task: TaskName, steps: list[dict[str, Any]], facts: SampleFacts) -> None:
    assert list(data_problems(options(augment=steps), task_of(task), facts)) == []
