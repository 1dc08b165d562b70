"""Columns of queries with lists of candidates and of scores, in every format that holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.worker.data.formats.builders import PARAM, columns_of, options, packed, refusal
from worker.data.formats import read_samples
from worker.data.formats.candidate_lists import MOST_CANDIDATES
from worker.data.formats.columns import Candidates, Samples, TextSamples

ROWS: list[dict[str, Any]] = [
    {"q": "one", "c": ["a", "b", "c"], "n": ["d"], "s": [0.9, 0.5, 0.25]},
    {"q": "two", "c": ["b"], "n": [], "s": [1]},
]
ONE: dict[str, Any] = {"input_columns": ["q"], "candidate_columns": ["c"]}
BOTH: dict[str, Any] = {"input_columns": ["q"], "candidate_columns": ["c", "n"]}


def write(folder: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / "data.tar"
    if form == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        Dataset.from_list(rows).save_to_disk(folder / "set")
        packed(path, {file.name: file.read_bytes() for file in (folder / "set").iterdir()})
    return path


def read(folder: Path, form: str, rows: list[dict[str, Any]] = ROWS, **more: Any) -> Samples:
    return read_samples(write(folder, form, rows), options(form, **more), columns_of("embedding"), PARAM)


def refused(folder: Path, form: str, rows: list[dict[str, Any]]) -> str:
    data = options(form, **ONE, label_columns=["s"])
    return refusal(write(folder, form, rows), data, "embedding").message


@pytest.mark.parametrize("form", ["jsonl", "parquet", "hf-dataset"])
def test_the_first_candidate_is_the_positive(tmp_path: Path, form: str) -> None:
    found = read(tmp_path, form, **ONE, label_columns=["s"])
    assert found.inputs == TextSamples(
        ["one", "two"], candidates=[Candidates(["a", "b", "c"], 1), Candidates(["b"], 1)]
    )
    assert found.labels == [[0.9, 0.5, 0.25], [1.0]]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_positives_and_negatives_have_columns_of_their_own(tmp_path: Path, form: str) -> None:
    found = read(tmp_path, form, **BOTH)
    assert found.inputs == TextSamples(
        ["one", "two"], candidates=[Candidates(["a", "b", "c", "d"], 3), Candidates(["b"], 1)]
    )
    assert len(found.labels) == 0


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("wrong", "column", "accepted"),
    [
        ({"c": []}, "c", f"a list of 1 to {MOST_CANDIDATES} texts"),
        ({"c": ["a"] * (MOST_CANDIDATES + 1)}, "c", f"a list of 1 to {MOST_CANDIDATES} texts"),
        ({"c": ["a", None]}, "c", "a list of texts"),
        ({"s": [0.5]}, "s", "3 numbers, one for each candidate"),
        ({"s": [0.5, None, 1.0]}, "s", "a list of finite 32-bit numbers"),
        ({"s": [0.5, 1e300, 1.0]}, "s", "a list of finite 32-bit numbers"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(
    tmp_path: Path, form: str, wrong: dict[str, Any], column: str, accepted: str
) -> None:
    rows = [ROWS[1], {**ROWS[0], **wrong}]
    message = refused(tmp_path, form, rows)
    assert message.startswith(f"column {column!r} of data.train has ")
    assert message.endswith(f" in row 1; accepted: {accepted}")


@pytest.mark.parametrize(
    ("wrong", "accepted"), [({"c": "a"}, "a list of texts"), ({"s": 0.5}, "a list of finite 32-bit numbers")]
)
def test_a_value_that_is_no_list_is_refused(tmp_path: Path, wrong: dict[str, Any], accepted: str) -> None:
    assert refused(tmp_path, "jsonl", [{**ROWS[0], **wrong}]).endswith(f"in row 0; accepted: {accepted}")


def test_without_lists_labels_are_numbers(tmp_path: Path) -> None:
    found = read(tmp_path, "jsonl", [{"q": "one", "s": 2}], input_columns=["q"], label_columns=["s"])
    np.testing.assert_array_equal(found.labels, [[2.0]])
