"""What a job's data must be for its task, as far as the headers of files tell."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.recipe.data.facts import Archive, ArrayFacts, FirstLine, Known, SampleFacts, data_problems, sample_facts
from app.recipe.data.sources import AnyData, Data
from app.recipe.students.model import ImageInput, TableInput, TextInput
from app.recipe.tasks.task import Task

COLUMNS = {"input_columns": ["a"], "label_columns": ["b"]}
SQUARE = ImageInput(channels=3, height=8, width=8)
PIXELS = SampleFacts(10, SQUARE, 192, pixels=True)


def options(**fields: Any) -> Data:
    found: Data = TypeAdapter(AnyData).validate_python({"train": "f", **fields})
    return found


def archive(inputs: tuple[int, ...], labels: tuple[int, ...], dtype: str = "f4") -> Archive:
    return {"x": ArrayFacts(inputs, dtype), "y": ArrayFacts(labels, dtype)}


@pytest.mark.parametrize(
    ("task", "facts", "expected"),
    [
        ("regression", archive((5, 3), (5,)), SampleFacts(5, TableInput(columns=3), 12, targets=1)),
        ("regression", archive((5, 3), (5, 2)), SampleFacts(5, TableInput(columns=3), 12, targets=2)),
        (
            "keypoints",
            archive((5, 8, 9), (5, 4, 2)),
            SampleFacts(5, ImageInput(channels=1, height=8, width=9), 288, targets=8),
        ),
    ],
)
def test_headers_tell_tables_and_targets(task: Task, facts: Archive, expected: SampleFacts) -> None:
    assert sample_facts(options(), task, facts) == expected


@pytest.mark.parametrize(
    ("task", "facts"),
    [
        ("regression", archive((5, 3), (5, 2, 2))),
        ("regression", archive((5, 3), (5, 0))),
        ("regression", archive((5, 5000), (5,))),
        ("regression", archive((5, 3), (4,))),
        ("keypoints", archive((5, 3), (5, 4, 2))),
        ("keypoints", archive((5, 8, 9), (5, 4, 3))),
        ("keypoints", archive((5, 8, 9), (5, 8))),
        ("keypoints", {"x": ArrayFacts((5, 8, 9), "u1"), "y": ArrayFacts((5, 4, 2), "i8")}),
    ],
)
def test_arrays_that_do_not_fit_the_task_are_refused(task: Task, facts: Archive) -> None:
    found = sample_facts(options(), task, facts)
    assert isinstance(found, list)
    assert [problem.param for problem in found] == ["data.train"]


@pytest.mark.parametrize(
    ("fields", "line", "params"),
    [
        ({"format": "csv"}, "a,b,c", []),
        ({"format": "csv"}, "a;b", ["data.input_columns", "data.label_columns"]),
        ({"format": "csv", "delimiter": ";"}, "a;b", []),
        ({"format": "csv"}, '"a",c', ["data.label_columns"]),
        ({"format": "csv", "quoted": False}, '"a",b', ["data.input_columns"]),
        ({"format": "csv"}, "a,a,b", ["data.input_columns"]),
        ({"format": "csv"}, 'a,"b', []),
        ({"format": "jsonl"}, '{"a": 1, "b": 2}', []),
        ({"format": "jsonl"}, '{"a": 1}', ["data.label_columns"]),
        ({"format": "jsonl"}, "a,b", ["data.train"]),
        ({"format": "jsonl"}, "[" * 99_999, ["data.train"]),
    ],
)
def test_a_first_line_is_held_against_the_columns(fields: dict[str, Any], line: str, params: list[str]) -> None:
    found = sample_facts(options(**COLUMNS, **fields), "text-classification", FirstLine(line))
    assert isinstance(found, list)
    assert [problem.param for problem in found] == params


def test_what_is_not_known_is_not_checked() -> None:
    unknown: list[tuple[Data, Known | None]] = [(options(), None), (options(format="image-folder"), FirstLine("a"))]
    assert all(sample_facts(data, "image-classification", known) == [] for data, known in unknown)


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
def test_a_format_must_hold_what_the_task_is_about(task: Task, fields: dict[str, Any], param: str) -> None:
    assert [problem.param for problem in data_problems(options(**fields), task, None)] == [param]


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
def test_an_augmentation_must_make_sense(task: Task, step: dict[str, Any], facts: Any, field: str) -> None:
    found = list(data_problems(options(augment=[step]), task, facts))
    assert [problem.param for problem in found] == [f"data.augment[0].{field}"]


@pytest.mark.parametrize(
    ("task", "steps", "facts"),
    [
        ("image-classification", [{"kind": "crop"}, {"kind": "rand-augment"}, {"kind": "self-mix"}], PIXELS),
        ("keypoints", [{"kind": "flip", "pairs": [[0, 2]]}], SampleFacts(9, SQUARE, 192, targets=6)),
        ("regression", [{"kind": "mixup"}], SampleFacts(9, TableInput(columns=3), 12, targets=1)),
    ],
)
def test_sound_augmentations_have_no_problem(task: Task, steps: list[dict[str, Any]], facts: SampleFacts) -> None:
    assert list(data_problems(options(augment=steps), task, facts)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"augment": [{"kind": "mixup"}, {"kind": "flip"}]},
        {"augment_epochs": 3},
        {"format": "csv", "input_columns": ["a", "a"], "label_columns": ["b"]},
        {"format": "csv", "label_columns": ["b"]},
        {"image_size": [32, 32]},
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options(**fields)
