"""Facts read from the headers of a job's files, for every task."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.data.facts import Archive, ArrayFacts, FirstLine, Known, SampleFacts
from app.recipe.data.headers import sample_facts
from app.recipe.data.sources import Data
from app.recipe.students.inputs import ImageInput, TableInput
from app.recipe.tasks import TaskName, task_of
from tests.app.recipe.data.builders import COLUMNS, options


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
def test_headers_have_the_facts_of_tables_and_targets(task: TaskName, facts: Archive, expected: SampleFacts) -> None:
    assert sample_facts(options(), task_of(task), facts) == expected


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
def test_arrays_that_do_not_fit_the_task_are_refused(task: TaskName, facts: Archive) -> None:
    found = sample_facts(options(), task_of(task), facts)
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
    found = sample_facts(options(**COLUMNS, **fields), task_of("text-classification"), FirstLine(line))
    assert isinstance(found, list)
    assert [problem.param for problem in found] == params


def test_what_is_not_known_is_not_checked() -> None:
    unknown: list[tuple[Data, Known | None]] = [(options(), None), (options(format="image-folder"), FirstLine("a"))]
    assert all(sample_facts(data, task_of("image-classification"), known) == [] for data, known in unknown)
