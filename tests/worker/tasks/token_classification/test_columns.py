"""Columns of words and tags, in every format that holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from app.recipe.data.sources import Data
from tests.worker.data.formats.builders import PARAM, options, packed
from worker.data.formats import read_samples
from worker.data.formats.columns import Samples, TextSamples
from worker.errors import UserError
from worker.tasks.token_classification.columns import WordColumns, piece_tags

NAMED: dict[str, Any] = {"input_columns": ["words"], "label_columns": ["tags"]}
WORDS, TAGS = [["Ann", "sees", "New York"], ["rain"]], [["B-PER", "O", "B-LOC"], ["O"]]
TEXTS = ["Ann sees New York", "rain"]
PIECES = [["B-PER", "O", "B-LOC", None], ["O"]]


def read(path: Path, kind: str, **more: Any) -> Samples:
    data: Data = options(kind, **NAMED, **more)
    return read_samples(path, data, WordColumns("token-classification"), PARAM)


def lines(folder: Path, *rows: tuple[Any, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"words": words, "tags": tags}) + "\n" for words, tags in rows))
    return path


def refusal(path: Path, kind: str = "jsonl") -> str:
    with pytest.raises(UserError) as refused:
        read(path, kind)
    assert (refused.value.code, refused.value.param) == ("invalid_data", PARAM)
    return refused.value.message


def test_a_tag_belongs_to_the_first_piece_of_its_word(tmp_path: Path) -> None:
    found = read(lines(tmp_path, *zip(WORDS, TAGS, strict=True)), "jsonl")
    assert found == Samples(TextSamples(TEXTS), PIECES)


def test_pieces_are_what_stands_between_white_spaces() -> None:
    words = ["a", "b c\td", " e ", "\u00a0", "f\u2009g"]
    text = " ".join(words)
    assert piece_tags(words, [1, 2, 3, 4, 5]) == [1, 2, None, None, 3, 5, None]
    assert len(text.split()) == 7


def test_words_of_nothing_are_left_out_with_a_note(tmp_path: Path) -> None:
    found = read(lines(tmp_path, (["a", "", " ", "b"], ["O", "X", "Y", "Z"])), "jsonl")
    assert found.labels == [["O", "Z"]]
    assert found.notes == (f"2 words of {PARAM} are empty, so that nothing is learned of their tags",)


def test_values_of_csv_are_split_at_spaces(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('words,tags\n"Ann sees ""Rome"" , too",B-PER O B-LOC O O\nrain,O\n')
    found = read(path, "csv")
    assert found.inputs == TextSamples(['Ann sees "Rome" , too', "rain"])
    assert found.labels == [["B-PER", "O", "B-LOC", "O", "O"], ["O"]]


@pytest.mark.parametrize(("tags", "wanted"), [("0 12", [0, 12]), ("0 x", ["0", "x"])])
def test_tags_of_csv_are_numbers_where_all_are(tmp_path: Path, tags: str, wanted: list[Any]) -> None:
    path = tmp_path / "data.csv"
    path.write_text(f"words,tags\na b,{tags}\n")
    assert read(path, "csv").labels == [wanted]


@pytest.mark.parametrize("tags", [TAGS, [[1, 0, 2], [0]]])
def test_parquet_holds_lists(tmp_path: Path, tags: Any) -> None:
    pq.write_table(pa.table({"words": WORDS, "tags": tags}), tmp_path / "data")
    found = read(tmp_path / "data", "parquet")
    assert found.inputs == TextSamples(TEXTS)
    assert found.labels == [[*tags[0], None], tags[1]]
    assert found.class_names is None


def saved(folder: Path, features: Features) -> Path:
    made = Dataset.from_dict({"words": WORDS, "tags": [[1, 0, 2], [0]]}, features=features)
    made.save_to_disk(str(folder / "set"))
    files = {path.name: path.read_bytes() for path in (folder / "set").iterdir()}
    return packed(folder / "data.tar", files)


def test_a_data_set_names_its_tags(tmp_path: Path) -> None:
    label = ClassLabel(names=["O", "B-PER", "B-LOC"])
    path = saved(tmp_path, Features({"words": Sequence(Value("string")), "tags": Sequence(label)}))
    found = read(path, "hf-dataset")
    assert (found.inputs, found.class_names) == (TextSamples(TEXTS), ["O", "B-PER", "B-LOC"])
    assert found.labels == [[1, 0, 2, None], [0]]


def test_a_data_set_without_names_has_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path, Features({"words": Sequence(Value("string")), "tags": Sequence(Value("int64"))}))
    assert read(path, "hf-dataset").class_names is None


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": {"names": ["O", "X"], "_type": "ClassLabel"}, "_type": "Sequence"},
        {"feature": {"names": ["O", "X"], "_type": "ClassLabel"}, "_type": "List"},
        [{"names": ["O", "X"], "_type": "ClassLabel"}],
    ],
)
def test_every_way_to_describe_a_list_of_named_tags_is_known(tmp_path: Path, feature: Any) -> None:
    table = pa.table({"words": [["a", "b"]], "tags": [[0, 1]]})
    told = json.dumps({"info": {"features": {"tags": feature}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), tmp_path / "data")
    assert read(tmp_path / "data", "parquet").class_names == ["O", "X"]


@pytest.mark.parametrize(
    ("words", "tags", "told"),
    [
        (["a", "b"], ["O"], "row 1 of data.train has 2 words and 1 tags; accepted: a tag for every word"),
        (["a"], [], "row 1 of data.train has 1 words and 0 tags"),
        ([], [], "column 'words' of data.train has [] in row 1; accepted: a list of words, at least one"),
        ([" ", ""], ["O", "O"], "has [' ', ''] in row 1; accepted: a list of words, at least one that is not empty"),
        ("a b", ["O", "O"], "column 'words' of data.train has 'a b' in row 1; accepted: a list of words"),
        (None, ["O"], "column 'words' of data.train has None in row 1"),
        (["a", None], ["O", "O"], "column 'words' of data.train has ['a', None] in row 1"),
        (["a", 1], ["O", "O"], "column 'words' of data.train has ['a', 1] in row 1"),
        (["\ud800"], ["O"], "halves of surrogate pairs"),
        (["a"], None, "column 'tags' of data.train has None in row 1; accepted: a list of tags"),
        (["a"], "O", "column 'tags' of data.train has 'O' in row 1; accepted: a list of tags"),
        (["a"], [None], "column 'tags' of data.train has None in row 1; accepted: a name, as the first tag is"),
        (["a"], [3], "column 'tags' of data.train has 3 in row 1; accepted: a name, as the first tag is"),
        (["a"], [["O"]], "column 'tags' of data.train has ['O'] in row 1; accepted: a name, as the first tag is"),
        (["a"], [""], "column 'tags' of data.train has '' in row 1; accepted: text that is not empty"),
    ],
)
def test_what_can_not_be_used_is_refused_by_name(tmp_path: Path, words: Any, tags: Any, told: str) -> None:
    assert told in refusal(lines(tmp_path, (["a"], ["O"]), (words, tags)))


@pytest.mark.parametrize("tag", [None, 0.5, 2**63])
def test_a_tag_is_a_name_or_a_whole_number(tmp_path: Path, tag: Any) -> None:
    told = refusal(lines(tmp_path, (["a"], [tag])))
    assert f"has {tag} in row 0; accepted: a name or a whole number, for every word" in told


@pytest.mark.parametrize("column", ["words", "tags"])
def test_a_missing_list_of_a_table_is_named(tmp_path: Path, column: str) -> None:
    table = {"words": [["a"], ["b"]], "tags": [["O"], ["O"]]}
    table[column][1] = None  # type: ignore[call-overload]
    pq.write_table(pa.table(table), tmp_path / "data")
    assert f"column '{column}' of data.train has None in row 1" in refusal(tmp_path / "data", "parquet")
