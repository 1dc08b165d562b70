"""CSV and JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.recipe.data.sources import Data
from app.recipe.tasks import TaskName
from tests.worker.data.formats.builders import PARAM, array, columns_of, options, refusal
from worker.data.formats import lines, read_pieces, read_samples
from worker.data.formats.columns import Samples, TextSamples
from worker.errors import UserError

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


def read(folder: Path, content: str | bytes, data: Data, task: TaskName = "text-classification") -> Samples:
    return read_samples(write(folder, content), data, columns_of(task), PARAM)


def said(folder: Path, content: str | bytes, data: Data, task: TaskName = "text-classification") -> str:
    return refusal(write(folder, content), data, task).message


ROWS = 'text,label\n"good, really",1\n"two\nlines",0\n7,1\n'


@pytest.mark.parametrize(
    "pack", [str.encode, lambda text: gzip.compress(text.encode()), lambda t: b"\xef\xbb\xbf" + t.encode()]
)
def test_texts_and_classes_of_csv(tmp_path: Path, pack: Any) -> None:
    found = read(tmp_path, pack(ROWS), csv())
    assert found.inputs == TextSamples(["good, really", "two\nlines", "7"])
    assert np.asarray(found.labels).tolist() == [1, 0, 1]


def test_without_quoting_a_quote_is_a_character(tmp_path: Path) -> None:
    found = read(tmp_path, 'text\tlabel\n"so so\tno\nsaid "yes"\tyes\n', csv(delimiter="\t", quoted=False))
    assert found.inputs == TextSamples(['"so so', 'said "yes"'])
    assert found.labels == ["no", "yes"]


def test_pairs_of_texts_with_a_score(tmp_path: Path) -> None:
    found = read(tmp_path, "a,score,b\nx,2.5,y\nu,1,v\n", csv(**PAIR), "regression")
    assert found.inputs == TextSamples(["x", "u"], ["y", "v"])
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
    assert read(tmp_path, content, jsonl()) == Samples(TextSamples(["12", "ü"]), ["no", "yes"])
    assert read(tmp_path, content, jsonl(), "text-classification").labels == ["no", "yes"]
    numbers = '{"text": [1, 2.5], "label": true}\n{"text": [3, 4], "label": false}'
    with_lists = read(tmp_path, numbers.replace("true", "1").replace("false", "0.5"), jsonl(), "regression")
    assert array(with_lists).tolist() == [[1, 2.5], [3, 4]]


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        (
            f"text,label\na,1\nb,{2**63}\n",
            "text-classification",
            "'label' of data.train has 9223372036854775808 in row 1",
        ),
        ("text,label\na,x\nb,y\0\n", "text-classification", "has 'y"),
        ("text,label\na,x\nb," + "y" * 1025 + "\n", "text-classification", "in row 1"),
        ("text,label\na,1\nb,１\n", "regression", "has '１' in row 1"),
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
        ('text,label\n"a,1\n', "text-classification", "not valid CSV"),
        (b"text,label\na\xff,1\n", "text-classification", "not UTF-8"),
        (gzip.compress(b"text,label\na,1\n", mtime=0)[:-9], "text-classification", "not a valid gzip"),
    ],
)
def test_what_is_wrong_with_csv_is_named(tmp_path: Path, content: str | bytes, task: TaskName, message: str) -> None:
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
def test_what_is_wrong_with_json_lines_is_named(tmp_path: Path, content: str, task: TaskName, message: str) -> None:
    assert message in said(tmp_path, content, jsonl(), task)


ODD = ["--1", "+1", "1_0", "１", "0x1", " 1", "1.0", "True", "nan", "inf", "1e3", "-", "²", "٣", "None", "NULL"]


@pytest.mark.parametrize("first", ["0", "zero"])
@pytest.mark.parametrize("odd", ODD)
def test_labels_are_names_where_any_is_text(tmp_path: Path, odd: str, first: str) -> None:
    found = read(tmp_path, f"text,label\na,{first}\nb,{odd}\nc,x\n", csv())
    assert found.labels == [first, odd, "x"]
    rows = "\n".join(json.dumps({"text": "a", "label": label}) for label in (first, odd, "x"))
    assert read(tmp_path, rows, jsonl()).labels == found.labels


@pytest.mark.parametrize("odd", [odd for odd in ODD if odd != " 1"])
def test_a_number_that_is_not_plainly_written_is_a_name(tmp_path: Path, odd: str) -> None:
    assert read(tmp_path, f"text,label\na,0\nb,{odd}\n", csv()).labels == ["0", odd]


@pytest.mark.parametrize("label", ["-1", " 1", "1 ", "007", "12"])
def test_plain_numbers_are_numbers_of_classes(tmp_path: Path, label: str) -> None:
    found = read(tmp_path, f"text,label\na,0\nb,{label}\n", csv()).labels
    assert np.asarray(found).tolist() == [0, int(label)]


@pytest.mark.parametrize(("label", "number"), [("1.0", 1), ("true", 1), ("-1", -1), ("1e2", 100)])
def test_whole_numbers_of_any_type_are_numbers_of_classes(tmp_path: Path, label: str, number: int) -> None:
    rows = f'{{"text": "a", "label": 0}}\n{{"text": "b", "label": {label}}}'
    assert np.asarray(read(tmp_path, rows, jsonl()).labels).tolist() == [0, number]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a", "label": "b\udc00"},
        {"text": "a\ud83d", "label": "b"},
        {"text": "\udcff", "label": "b"},
    ],
)
@pytest.mark.parametrize("task", ["text-classification", "regression"])
def test_half_a_surrogate_pair_is_named(tmp_path: Path, row: dict[str, Any], task: TaskName) -> None:
    plain = {"text": "a", "label": "b" if task == "text-classification" else 1.0}
    message = said(tmp_path, "\n".join(map(json.dumps, (plain, {**plain, **row}))), jsonl(), task)
    column = next(name for name, value in row.items() if not value.isascii())
    assert f"column {column!r} of data.train" in message
    assert "in row 1" in message
    assert message.isascii()


@pytest.mark.parametrize(
    "value", ["a\ud83d", [{"role": "user", "content": "\udc00"}], [{"role": "\ud800", "content": ""}]]
)
def test_half_a_surrogate_pair_is_named_where_texts_are_read_in_pieces(tmp_path: Path, value: Any) -> None:
    plain = "a" if isinstance(value, str) else [{"role": "user", "content": "a"}]
    path = write(tmp_path, "\n".join(json.dumps({"text": each}) for each in (plain, plain, value)))
    with pytest.raises(UserError, match="in row 2") as caught:
        list(read_pieces(path, jsonl(label_columns=[]), PARAM, tmp_path))
    assert (caught.value.code, caught.value.param) == ("invalid_data", PARAM)


@pytest.mark.parametrize("characters", [131_073, 1_000_000])
def test_a_value_may_be_long(tmp_path: Path, characters: int) -> None:
    for data, content in (
        (csv(), "text,label\n{},0\nb,1\n"),
        (csv(delimiter="\t", quoted=False), "text\tlabel\n{}\t0\n"),
    ):
        found = read(tmp_path, content.format("a" * characters), data)
        assert isinstance(found.inputs, TextSamples)
        assert len(found.inputs.first[0]) == characters


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_only_line_feeds_end_a_row(tmp_path: Path, character: str) -> None:
    text = f"one{character}two"
    assert read(tmp_path, f"text,label\n{text},0\nb,1\n", csv()).inputs == TextSamples([text, "b"])
    rows = json.dumps({"text": text, "label": 0}, ensure_ascii=False) if character > "\x1f" else None
    if rows:
        assert read(tmp_path, f"{rows}\r\n{rows}\n", jsonl()).inputs == TextSamples([text, text])


def test_a_carriage_return_is_white_space_of_json(tmp_path: Path) -> None:
    assert read(tmp_path, '{"text": "a",\r "label": 0}\r\n{"text": "b", "label": 1}', jsonl()).inputs == TextSamples(
        ["a", "b"]
    )


def test_a_value_that_no_quote_ends_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 200_000)
    assert "not valid CSV" in said(tmp_path, 'text,label\n"' + "a\n" * 100_001 + '",1\n', csv())


def test_columns_must_go_together(tmp_path: Path) -> None:
    data = csv(input_columns=["a", "b"], label_columns=["y"])
    assert "'a': numbers, 'b': texts" in said(tmp_path, "a,b,y\n1,x,2\n", data, "regression")


def test_what_unpacks_to_more_than_the_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_BYTES", 100)
    content = gzip.compress(("text,label\n" + "a,1\n" * 100).encode())
    assert "unpacks to more than 100" in said(tmp_path, content, csv())
    monkeypatch.setattr(lines, "MAX_LINE", 50)
    assert "a line of more than 50" in said(tmp_path, "text,label\n" + "a" * 60, csv())
