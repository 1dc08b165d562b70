"""Small files that cost their reader gigabytes or endless time: their errors, and the memory and time they take."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from app.recipe.job import JobSpec
from tests.worker.data.formats.builders import columns_of, options, packed
from worker import limits
from worker.data.chats import ChatWriter
from worker.data.formats import read_samples
from worker.data.formats.columns import ChatMessage, TextSamples
from worker.data.formats.faults import FREE_BYTES, data_memory, data_subject, most_bytes
from worker.data.labels import find_classes
from worker.data.readers import _stored
from worker.data.running_text import PackingDir, TextFile
from worker.data.task_data import refuse
from worker.data.text_limits import reading_template, write_all
from worker.errors import UserError
from worker.limits import reading

linux = pytest.mark.skipif(sys.platform != "linux", reason="bounds on memory need Linux")
MIB = 2**20


def read(path: Path, task: Any, kind: str = "parquet", **more: Any) -> UserError:
    """The error for a file that can't be read within its limits."""
    data = options(kind, input_columns=["x"], label_columns=["y"], **more)
    with pytest.raises(UserError) as caught, reading(data_subject("data.train"), data_memory(path)):
        read_samples(path, data, columns_of(task), "data.train")
    assert (caught.value.code, caught.value.param) == ("invalid_data", "data.train")
    return caught.value


def repeated(path: Path, value: Any, rows: int, *, lists: bool = False) -> Path:
    """A Parquet file of one value that is stored once and comes in all rows."""
    column: Any = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))
    column = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), column) if lists else column
    pq.write_table(
        pa.table({"x": column, "y": pa.array(np.zeros(rows, np.int64))}), path, compression="zstd", store_schema=False
    )
    assert path.stat().st_size < 50_000
    return path


@linux
@pytest.mark.parametrize("lists", [False, True])
def test_a_value_that_is_stored_once_does_not_fill_the_memory(tmp_path: Path, lists: bool) -> None:
    path = repeated(tmp_path / "a.parquet", "a" * MIB, 8192, lists=lists)
    assert "more than" in read(path, "regression").message


def test_rows_that_name_values_which_a_data_set_lacks_are_refused(tmp_path: Path) -> None:
    wrong = pa.DictionaryArray.from_arrays(pa.array([0, 7, -1], pa.int32()), pa.array(["a"]), safe=False)
    table = pa.table({"x": wrong, "y": pa.array([0, 1, 0])})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    state = json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()
    path = packed(tmp_path / "a.zip", {"d/state.json": state, "d/data.arrow": sink.getvalue()})
    assert "valid data set" in read(path, "text-classification", "hf-dataset").message


@linux
def test_an_image_that_is_stored_once_does_not_fill_the_memory(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    path = repeated(tmp_path / "a.parquet", buffer.getvalue(), 600)
    assert "more than" in read(path, "image-classification", image_size=[2048, 2048]).message


def test_rows_that_take_no_space_in_the_file_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.data.formats.faults.FREE_BYTES", 10_000)
    rows = 1_000_000
    table = pa.table({"x": np.zeros(rows, np.float32), "y": np.zeros(rows, np.float32)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert "accepted: at most that for its size" in read(tmp_path / "a.parquet", "regression").message


def test_honest_files_may_take_far_more_than_they_have(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * MIB)
    assert most_bytes(path, 100) == FREE_BYTES + 100 * MIB
    assert data_memory(path) > 3 * most_bytes(path)


def test_texts_that_are_read_some_at_a_time_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.data.formats.faults.FREE_BYTES", 1000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"x": "aaaaaaaaaaaaaaaaaaaa"}\n' * 100_000))
    data = options("jsonl", input_columns=["x"], label_columns=[])
    with pytest.raises(UserError, match="accepted: at most 100 times as many as the file has bytes") as caught:
        TextFile(path, data, "data.train", PackingDir(tmp_path)).count()
    assert caught.value.param == "data.train"


@pytest.mark.parametrize("value", ["[" * 200_000 + "]" * 200_000, "9" * 50_000], ids=["deep", "digits"])
def test_json_that_nests_or_counts_without_end_is_refused_by_row(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"x": {value}, "y": 1}}\n')
    assert "row 0 of data.train" in read(path, "regression", "jsonl").message


def test_a_message_lists_some_of_many_names() -> None:
    names = [f"{'n' * 50}{number}" for number in range(200_000)]
    with pytest.raises(UserError, match="and 199980 more") as caught:
        find_classes(classifying(), {}, {"data.train": samples(names)})
    assert len(caught.value.message) < 5000


def test_names_of_classes_must_fit_a_models_description() -> None:
    with pytest.raises(UserError, match="accepted: shorter names") as caught:
        find_classes(classifying(), {}, {"data.train": samples(["a" * MIB, "b" * MIB])})
    assert caught.value.code == "invalid_data"


def classifying() -> JobSpec:
    data = options("csv", input_columns=["x"], label_columns=["y"])
    return JobSpec.model_validate(
        {
            "task": "text-classification",
            "data": data.model_dump(mode="json"),
            "student": {"architecture": "transformers", "config": {"model_type": "bert"}},
            "recipe": {"losses": [{"kind": "cross-entropy"}]},
        }
    )


def samples(names: list[str]) -> Any:
    from worker.data.formats.columns import Samples

    return Samples(TextSamples(["t"] * len(names)), names)


def test_some_of_many_problems_are_reported() -> None:
    from app.recipe.problem import Problem

    with pytest.raises(UserError, match="and 980 more"):
        refuse([Problem(f"data.input_columns[{number}]", "is wrong") for number in range(1000)])


# ---- tokenizers and templates

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"[UNK]": 0, "a": 1, "[PAD]": 2, "</s>": 3},
    },
}


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python code is interrupted after seconds; native code is not ended, which would end the tests."""
    monkeypatch.setattr(limits, "SECONDS", 20.0)
    monkeypatch.setattr(limits, "GRACE", 1000.0)


def stored(folder: Path, **changes: Any) -> Any:
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER | changes))
    return _stored(folder, "teacher")


def test_a_tokenizer_may_not_decide_how_long_texts_are(tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2}
    truncation = {"direction": "Right", "max_length": 10**9, "strategy": "LongestFirst", "stride": 10**8}
    more = {"pad_type_id": 0, "pad_token": "[PAD]"}
    tokenizer = stored(tmp_path, padding=padding | more, truncation=truncation)
    assert tokenizer.encode(TextSamples(["a a"]), 64).ids.shape == (1, 8)


def test_a_library_that_panics_is_no_end_of_the_process(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        stored(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}).encode(
            TextSamples(["aé"]), 8
        )
    assert (caught.value.code, caught.value.param) == ("invalid_teacher", "teacher")


TEMPLATES = {
    "product": "{{ 'a' * 3000000000 }}",
    "width": "{{ 'a'|center(3000000000) }}",
    "doubled": "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "macro": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "blocks": "{% if 1 %}" * 300 + "x" + "{% endif %}" * 300,
    "missing": "{{ messages.foo.bar }}",
}


def write(tokenizer: Any) -> None:
    with reading_template():
        writer = ChatWriter(tokenizer, "data.train")
    write_all(writer, [[ChatMessage("user", "hi"), ChatMessage("assistant", "yes")]], 0)


@linux
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_takes_too_much_is_refused(tmp_path: Path, name: str) -> None:
    tokenizer = stored(tmp_path)
    tokenizer.template = TEMPLATES[name]
    with pytest.raises(UserError) as caught:
        write(tokenizer)
    assert caught.value.code in ("invalid_job", "invalid_data")
    assert "template" in caught.value.message


def test_a_template_that_does_not_end_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    tokenizer = stored(tmp_path)
    tokenizer.template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    writer = ChatWriter(tokenizer, "data.train")
    with pytest.raises(UserError, match="takes longer than"):
        write_all(writer, [[ChatMessage("user", "hi")]], 0)
