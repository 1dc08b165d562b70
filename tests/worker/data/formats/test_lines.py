"""CSV and JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.recipe.data import Data
from app.recipe.task import Task
from tests.worker.data.formats.builders import PARAM, array, options, refusal
from worker.data.formats import lines, read_samples
from worker.data.formats.columns import Samples, Texts

TEXT = {"input_columns": ["text"], "label_columns": ["label"]}
PAIR = {"input_columns": ["a", "b"], "label_columns": ["score"]}


def csv(**more: Any) -> Data:
    return options("csv", **{**TEXT, **more})


def jsonl(**more: Any) -> Data:
    return options("jsonl", **{**TEXT, **more})


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "data"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str | bytes, data: Data, task: Task = "text-classification") -> Samples:
    return read_samples(write(folder, content), data, task, PARAM)


def said(folder: Path, content: str | bytes, data: Data, task: Task = "text-classification") -> str:
    return refusal(write(folder, content), data, task).message


ROWS = 'text,label\n"good, really",1\n"two\nlines",0\n7,1\n'


@pytest.mark.parametrize(
    "pack", [str.encode, lambda text: gzip.compress(text.encode()), lambda t: b"\xef\xbb\xbf" + t.encode()]
)
def test_texts_and_classes_of_csv(tmp_path: Path, pack: Any) -> None:
    found = read(tmp_path, pack(ROWS), csv())
    assert found.inputs == Texts(["good, really", "two\nlines", "7"])
    assert np.asarray(found.labels).tolist() == [1, 0, 1]


def test_without_quoting_a_quote_is_a_character(tmp_path: Path) -> None:
    found = read(tmp_path, 'text\tlabel\n"so so\tno\nsaid "yes"\tyes\n', csv(delimiter="\t", quoted=False))
    assert found.inputs == Texts(['"so so', 'said "yes"'])
    assert found.labels == ["no", "yes"]


def test_pairs_of_texts_with_a_score(tmp_path: Path) -> None:
    found = read(tmp_path, "a,score,b\nx,2.5,y\nu,1,v\n", csv(**PAIR), "regression")
    assert found.inputs == Texts(["x", "u"], ["y", "v"])
    assert np.asarray(found.labels).tolist() == [[2.5], [1.0]]


def test_columns_of_numbers_are_a_table(tmp_path: Path) -> None:
    data = csv(input_columns=["a", "b", "c"], label_columns=["y", "z"])
    found = read(tmp_path, "a,b,c,y,z\n1,2,3,4,5\n-1,.5,1e3,0,6\n", data, "regression")
    assert array(found).tolist() == [[1, 2, 3], [-1, 0.5, 1000]]
    assert array(found).dtype == np.float32
    assert np.asarray(found.labels).tolist() == [[4, 5], [0, 6]]


def test_json_lines_have_types_of_their_own(tmp_path: Path) -> None:
    rows = [{"text": "12", "label": "no", "more": [1]}, {"text": "ü", "label": "yes"}]
    content = "\n".join(map(json.dumps, rows)) + "\n\n"
    assert read(tmp_path, content, jsonl()) == Samples(Texts(["12", "ü"]), ["no", "yes"])
    assert read(tmp_path, content, jsonl(), "text-classification").labels == ["no", "yes"]
    numbers = '{"text": [1, 2.5], "label": true}\n{"text": [3, 4], "label": false}'
    with_lists = read(tmp_path, numbers.replace("true", "1").replace("false", "0.5"), jsonl(), "regression")
    assert array(with_lists).tolist() == [[1, 2.5], [3, 4]]


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ("text,label\na,1\nb,x\n", "text-classification", "'label' of data.train has 'x' in row 1"),
        ("text,label\na,yes\nb,\n", "text-classification", "'label' of data.train has '' in row 1"),
        ("text,label\n1,1\nb,2\n", "regression", "'text' of data.train has 'b' in row 1"),
        ("text,label\na,1\nb,nan\n", "regression", "'label' of data.train has 'nan' in row 1"),
        ("text,label\na,1\nb,1e60\n", "regression", "'label' of data.train has '1e60' in row 1"),
        ("text,label\na,1\nb,inf\n", "regression", "has 'inf' in row 1"),
        ("text,label\na,1\nb,1_0\n", "regression", "has '1_0' in row 1"),
        ("text,label\na,1\nb\n", "text-classification", "row 1 of data.train has 1 values; accepted: 2"),
        ("text,labels\na,1\n", "text-classification", "no column 'label'; it has 'labels', 'text'"),
        ("text,label,text\na,1,b\n", "text-classification", "more than one column 'text'"),
        ("text,label\n", "text-classification", "has no rows"),
        ("", "text-classification", "no column 'text'; it has none"),
        ('text,label\n"a,1\n', "text-classification", "not sound CSV"),
        (b"text,label\na\xff,1\n", "text-classification", "not UTF-8"),
        (gzip.compress(b"text,label\na,1\n", mtime=0)[:-9], "text-classification", "not soundly packed"),
        ("text,label\n" + "a" * 200_000 + ",1\n", "text-classification", "not sound CSV"),
    ],
)
def test_what_is_wrong_with_csv_is_named(tmp_path: Path, content: str | bytes, task: Task, message: str) -> None:
    assert message in said(tmp_path, content, csv(), task)


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ('{"text": "a", "label": 1}\n{oops}', "text-classification", "row 1 of data.train is not JSON"),
        ('{"text": "a", "label": 1}\n[1]', "text-classification", "row 1 of data.train is [1]"),
        (
            '{"text": "a", "label": 1}\n{"text": "b"}',
            "text-classification",
            "row 1 of data.train has no column 'label'",
        ),
        ('{"text": "a", "label": 1}\n{"text": null, "label": 1}', "text-classification", "has None in row 1"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 0.5}', "text-classification", "has 0.5 in row 1"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": NaN}', "regression", "row 1 of data.train is not JSON"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 1e999}', "regression", "has inf in row 1"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": "2"}', "regression", "has '2' in row 1"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": true}', "regression", "has True in row 1"),
        ('{"text": [1], "label": 1}\n{"text": [1, 2], "label": 1}', "regression", "has [1, 2] in row 1"),
        ('{"text": "a", "label": ' + "9" * 400 + "}", "regression", "in row 0"),
        ('{"text": ' + "[" * 100_000, "regression", "row 0 of data.train is not JSON"),
    ],
)
def test_what_is_wrong_with_json_lines_is_named(tmp_path: Path, content: str, task: Task, message: str) -> None:
    assert message in said(tmp_path, content, jsonl(), task)


def test_columns_must_go_together(tmp_path: Path) -> None:
    data = csv(input_columns=["a", "b"], label_columns=["y"])
    assert "'a': numbers, 'b': texts" in said(tmp_path, "a,b,y\n1,x,2\n", data, "regression")


def test_what_unpacks_to_more_than_the_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_BYTES", 100)
    content = gzip.compress(("text,label\n" + "a,1\n" * 100).encode())
    assert "unpacks to more than 100" in said(tmp_path, content, csv())
    monkeypatch.setattr(lines, "MAX_LINE", 50)
    assert "a line of more than 50" in said(tmp_path, "text,label\n" + "a" * 60, csv())
