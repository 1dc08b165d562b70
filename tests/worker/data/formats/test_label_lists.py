"""Columns of samples with any number of classes, in every format that holds them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from app.recipe.data.sources import Data
from tests.worker.data.formats.builders import PARAM, columns_of, options, packed, refusal
from worker.data.formats import read_samples
from worker.data.formats.columns import Samples, TextSamples

TASK = "multi-label-classification"
LISTS: dict[str, Any] = {"input_columns": ["text"], "label_columns": ["tags"]}
FLAGS: dict[str, Any] = {"input_columns": ["text"], "label_columns": ["spam", "rude"]}


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "data"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def csv(cells: list[str], **more: Any) -> tuple[str, Data]:
    """A table of one column of lists, its values in quotes."""
    return "text,tags\n" + "".join(f'a,"{cell}"\n' for cell in cells), options("csv", **{**LISTS, **more})


def jsonl(cells: list[Any], **more: Any) -> tuple[str, Data]:
    lines = (json.dumps({"text": "a", "tags": cell}) for cell in cells)
    return "".join(f"{line}\n" for line in lines), options("jsonl", **{**LISTS, **more})


def parquet(cells: list[Any], kind: pa.DataType | None = None) -> tuple[bytes, Data]:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"] * len(cells), "tags": pa.array(cells, kind)}), buffer)
    return buffer.getvalue(), options("parquet", **LISTS)


def read(folder: Path, content: str | bytes, data: Data) -> Samples:
    return read_samples(write(folder, content), data, columns_of(TASK), PARAM)


def said(folder: Path, content: str | bytes, data: Data) -> str:
    return refusal(write(folder, content), data, TASK).message


def test_names_in_a_value_of_csv_stand_apart(tmp_path: Path) -> None:
    found = read(tmp_path, *csv(["b|a", "", "  ", " a | b c ", "a", "a|a"]))
    assert found.labels == [["b", "a"], [], [], ["a", "b c"], ["a"], ["a"]]
    assert found.inputs == TextSamples(["a"] * 6)
    assert found.class_names is None


def test_the_separator_is_the_jobs(tmp_path: Path) -> None:
    assert read(tmp_path, *csv(["a|b, c", "c"], label_separator=",")).labels == [["a|b", "c"], ["c"]]
    assert read(tmp_path, *csv(["a b", "c"], label_separator=" ")).labels == [["a", "b"], ["c"]]


def test_texts_are_texts_even_if_they_are_numerals(tmp_path: Path) -> None:
    assert read(tmp_path, "text,tags\n7,a\n8,b\n", options("csv", **LISTS)).inputs == TextSamples(["7", "8"])


def test_lists_of_whole_numbers_are_numbers_of_classes(tmp_path: Path) -> None:
    for content, data in (csv(["0|3", "", "12"]), jsonl([[0, 3], [], [12.0]]), parquet([[0, 3], [], [12]])):
        assert read(tmp_path, content, data).labels == [[0, 3], [], [12]]
    assert read(tmp_path, *csv(["0|x", "7"])).labels == [["0", "x"], ["7"]]


def test_lists_of_names_stand_as_they_are(tmp_path: Path) -> None:
    rows: list[Any] = [["b", " a"], [], ["a|b", "a|b"]]
    for content, data in (jsonl(rows), parquet(rows), parquet(rows, pa.large_list(pa.large_string()))):
        assert read(tmp_path, content, data).labels == [["b", " a"], [], ["a|b"]]


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["a", "a||b"], "has 'a||b' in row 1; accepted: names separated by '|', none of them empty"),
        (["a|"], "has 'a|' in row 0"),
        (["0|1|1|0"], "has [0, 1, 1, 0] in row 0; accepted: numbers of classes, each once; 0 and 1 for every class in"),
        (["-1"], "has [-1] in row 0"),
        (["a\0b"], "row 0; accepted: names of classes, each text that is not empty"),
    ],
)
def test_a_value_of_csv_that_can_t_be_taken_is_named(tmp_path: Path, cells: list[str], told: str) -> None:
    message = said(tmp_path, *csv(cells))
    assert told in message
    assert "column 'tags' of data.train" in message


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([["a"], "a|b"], "has 'a|b' in row 1; accepted: a list of names of classes"),
        ([["a"], None], "has None in row 1"),
        ([["a"], ["a", None]], "in row 1; accepted: a list of names of classes, as in the rows before"),
        ([["a"], [3]], "has [3] in row 1; accepted: a list of names of classes, as in the rows before"),
        ([[3], ["a"]], "has ['a'] in row 1; accepted: a list of whole numbers of classes, as in the rows before"),
        ([[True]], "has [True] in row 0; accepted: a list of names"),
        ([[0.5]], "has [0.5] in row 0"),
        ([[], [2, 2]], "has [2, 2] in row 1; accepted: numbers of classes, each once"),
        ([[""]], "row 0; accepted: names of classes, each text that is not empty"),
        ([{"a": 1}], "row 0; accepted: a list of names of classes"),
    ],
)
def test_a_value_of_json_that_can_t_be_taken_is_named(tmp_path: Path, cells: list[Any], told: str) -> None:
    assert told in said(tmp_path, *jsonl(cells))


def test_a_row_of_parquet_without_a_list_is_named(tmp_path: Path) -> None:
    assert "has None in row 1" in said(tmp_path, *parquet([["a"], None]))
    assert "row 1" in said(tmp_path, *parquet([["a"], ["b", None]]))
    assert "has 'a' in row 0; accepted: a list of names of classes" in said(tmp_path, *parquet(["a"]))


def test_columns_of_flags_are_called_as_their_classes(tmp_path: Path) -> None:
    content = "text,spam,rude,other\na,0, 1,x\nb,1.0,False,x\nc,TRUE,0,x\n"
    found = read(tmp_path, content, options("csv", **FLAGS))
    assert np.asarray(found.labels).tolist() == [[0, 1], [1, 0], [1, 0]]
    assert found.class_names == ["spam", "rude"]
    content = '{"text": "a", "spam": true, "rude": 0}\n{"text": "b", "spam": 0.0, "rude": 1}\n'
    assert np.asarray(read(tmp_path, content, options("jsonl", **FLAGS)).labels).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.bool_(), pa.decimal128(21, 1)])
def test_flags_of_parquet_may_have_any_type_of_number(tmp_path: Path, kind: pa.DataType) -> None:
    spam, rude = pa.array([1, 0, 0]).cast(kind), pa.array([False, True, False])
    pq.write_table(pa.table({"text": ["a", "b", "c"], "spam": spam, "rude": rude}), tmp_path / "data")
    found = read_samples(tmp_path / "data", options("parquet", **FLAGS), columns_of(TASK), PARAM)
    assert np.asarray(found.labels).tolist() == [[1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize("value", ["2", "", "yes", "nan", "-1", "0.5"])
def test_a_flag_of_csv_that_is_neither_0_nor_1_is_named(tmp_path: Path, value: str) -> None:
    told = said(tmp_path, f"text,spam,rude\na,0,1\nb,1,{value}\n", options("csv", **FLAGS))
    assert f"column 'rude' of data.train has {value!r} in row 1; accepted: 0 or 1" in told


@pytest.mark.parametrize("value", ["2", "null", '"1"', "[1]", "0.5"])
def test_a_flag_of_json_that_is_neither_0_nor_1_is_named(tmp_path: Path, value: str) -> None:
    content = f'{{"text": "a", "spam": 1, "rude": 0}}\n{{"text": "b", "spam": {value}, "rude": 1}}\n'
    assert "column 'spam' of data.train has " in (told := said(tmp_path, content, options("jsonl", **FLAGS)))
    assert "in row 1; accepted: 0 or 1" in told


@pytest.mark.parametrize("values", [[0, 2], [0.0, float("nan")], ["0", "1"], [[0], [1]], [0, None]])
def test_a_flag_of_parquet_that_is_neither_0_nor_1_is_named(tmp_path: Path, values: list[Any]) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "spam": [1, 0], "rude": values}), tmp_path / "data")
    told = refusal(tmp_path / "data", options("parquet", **FLAGS), TASK).message
    assert "column 'rude' of data.train has " in told
    assert "in row " in told


def test_a_data_set_of_lists_of_a_class_label_has_the_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "tags": Sequence(ClassLabel(names=["joy", "fear", "love"]))})
    Dataset.from_dict({"text": ["a", "b"], "tags": [[2, 0], []]}, features=features).save_to_disk(str(tmp_path / "set"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    data = options("hf-dataset", **LISTS)
    found = read_samples(packed(tmp_path / "set.tar", files), data, columns_of(TASK), PARAM)
    assert (found.labels, found.class_names) == ([[2, 0], []], ["joy", "fear", "love"])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_an_archive_has_a_row_of_flags_for_each_sample(tmp_path: Path, dtype: Any) -> None:
    flags = np.array([[1, 0, 0], [0, 0, 0]], dtype)
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 4, 4), np.uint8), y=flags)
    found = read_samples(tmp_path / "data.npz", options("npz"), columns_of(TASK), PARAM)
    assert np.asarray(found.labels).tolist() == flags.tolist()
