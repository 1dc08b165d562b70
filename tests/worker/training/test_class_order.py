"""Texts whose teacher has the classes in another order, and tokenizers that do not cover the texts."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification

from app.recipe.job import JobSpec
from tests.worker.training.builders import Played, play
from worker.protocol import Assignment, Failed, Finished, Log

Document = dict[str, Any]
NAMES = ["entailment", "neutral", "contradiction"]
CUES = {"entailment": "yes", "neutral": "perhaps", "contradiction": "never"}
OTHER = ["the", "dog", "ran", "home", "again", "and", "late", "it", "was"]
BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 64, "max_position_embeddings": 32}
COLUMNS = {"input_columns": ["text"], "label_columns": ["label"], "max_length": 16}


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts in which one word determines the class, and its name."""
    draw = random.Random(seed)
    named = [(NAMES[number % 3], draw.choices(OTHER, k=4)) for number in range(count)]
    return [(" ".join([*words, CUES[name]]), name) for name, words in named]


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("text,label\n" + "".join(f"{text},{name}\n" for text, name in rows))


def write_parquet(path: Path, rows: list[tuple[str, str]], names: list[str]) -> None:
    """As the library `datasets` writes a column of the kind ClassLabel."""
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": [text for text, _ in rows], "label": [names.index(name) for _, name in rows]})
    pq.write_table(table.replace_schema_metadata(metadata), path)


def run(folder: Path, inputs: dict[str, Path], document: Document) -> Played:
    folder.mkdir(parents=True)
    base: Document = {
        "task": "text-classification",
        "student": {"architecture": "transformers", "config": BERT},
        "export": ["safetensors"],
        "seed": 1,
    }
    spec = JobSpec.model_validate(base | document)
    return play(Assignment(spec=spec, inputs={name: str(path) for name, path in inputs.items()}), folder)


def recipe(loss: str, epochs: int, **more: Any) -> Document:
    adam = {"kind": "adamw", "lr": 3e-3}
    return {"losses": [{"kind": loss}], "epochs": epochs, "batch_size": 16, "optimizer": adam, **more}


def report(folder: Path) -> Document:
    found: Document = json.loads((folder / "bundle" / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher with the classes in alphabetical order, and files that list them in another."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("inputs")
    write_csv(folder / "teacher-train", sentences(240, 1))
    write_parquet(folder / "train", sentences(240, 2), NAMES)
    write_parquet(folder / "eval", sentences(90, 3), [NAMES[1], NAMES[0], NAMES[2]])
    given = {"teacher-train": folder / "teacher-train"}
    data = {"format": "csv", "train": "teacher-train", **COLUMNS}
    played = run(folder / "job", given, {"data": data, "recipe": recipe("cross-entropy", 20)})
    assert isinstance(played.word, Finished), played.word
    assert report(folder / "job")["student"]["accuracy"] == 1.0
    assert [row["name"] for row in report(folder / "job")["per_class"]] == sorted(NAMES)
    return {"train": folder / "train", "eval": folder / "eval", "teacher": folder / "job" / "bundle"}


DATA = {"format": "parquet", "train": "train", "eval": "eval", **COLUMNS}
WITH_TEACHER: Document = {"data": DATA, "teacher": {"model": "teacher"}}


def test_classes_of_a_parquet_file_and_a_teacher_are_matched_by_name(inputs: dict[str, Path], tmp_path: Path) -> None:
    losses = [{"kind": "kd", "temperature": 1.0}]
    played = run(tmp_path / "job", inputs, WITH_TEACHER | {"recipe": recipe("kd", 40, losses=losses)})
    assert isinstance(played.word, Finished), played.word
    found = report(tmp_path / "job")
    assert found["teacher"]["accuracy"] == 1.0
    assert found["student"]["accuracy"] > 0.95
    assert found["student"]["agreement"] > 0.95
    assert [row["name"] for row in found["per_class"]] == NAMES
    assert found["warnings"] == []


@pytest.mark.parametrize(
    "student", [{"architecture": "shrink", "layers": 1}, {"architecture": "pretrained", "model": "teacher"}]
)
def test_a_student_s_initial_weights_are_aligned_with_its_classes(
    inputs: dict[str, Path], tmp_path: Path, student: Document
) -> None:
    still = recipe("kd", 1, optimizer={"kind": "sgd", "lr": 1e-9})
    played = run(tmp_path / "job", inputs, WITH_TEACHER | {"recipe": still, "student": student})
    assert isinstance(played.word, Finished), played.word
    assert report(tmp_path / "job")["student"]["accuracy"] == report(tmp_path / "job")["student"]["agreement"] == 1.0


# ---- tokenizers


def bert(folder: Path, tokenizer: tokenizers.Tokenizer | None, rows: int) -> Path:
    """A BERT of the Transformers library with random weights, saved as by its users."""
    torch.manual_seed(0)
    sizes = {name: value for name, value in BERT.items() if name != "model_type"}
    names = dict(enumerate(NAMES))
    config = BertConfig(vocab_size=rows, id2label=names, label2id={name: i for i, name in names.items()}, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def word_level(words: list[str]) -> tokenizers.Tokenizer:
    pieces = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    made = tokenizers.Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_tokenizer_that_covers_no_word_is_refused(inputs: dict[str, Path], tmp_path: Path, role: str) -> None:
    stored = bert(tmp_path / "bert", word_level([]), 400)
    named: dict[str, Document] = {
        "teacher": {"teacher": {"model": "bert"}, "recipe": recipe("kd", 1)},
        "student": {
            "student": {"architecture": "pretrained", "model": "bert"},
            "recipe": recipe("cross-entropy", 1),
        },
    }
    word = run(tmp_path / "job", {**inputs, "bert": stored}, {"data": DATA, **named[role]}).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", f"invalid_{role}", f"{role}.model")
    assert "has no tokens for 1200 of 1200 words of data.train" in word.message


def test_a_tokenizer_that_covers_few_words_or_fits_another_network_is_a_warning(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    stored = bert(tmp_path / "bert", word_level(["the", "dog", "ran", "yes", "never"]), 400)
    document: Document = {"data": DATA, "teacher": {"model": "bert"}, "recipe": recipe("kd", 1)}
    played = run(tmp_path / "job", {**inputs, "bert": stored}, document)
    assert isinstance(played.word, Finished), played.word
    messages = [log.message for log in played.of(Log) if log.level == "warning"]
    assert any("teacher.model has a tokenizer that has no tokens for" in each for each in messages)
    assert any("has a tokenizer of 10 tokens for 400 embeddings" in each for each in messages)
    assert [warned["message"] for warned in report(tmp_path / "job")["warnings"]] == messages


def test_tokens_without_an_embedding_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Also for a model of this service, whose config has their number."""
    shutil.copytree(inputs["teacher"], tmp_path / "wide")
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "wide" / "tokenizer.json"))
    made.add_tokens([f"more{number}" for number in range(5000)])
    made.save(str(tmp_path / "wide" / "tokenizer.json"))
    word = run(tmp_path / "job", {**inputs, "wide": tmp_path / "wide"}, {
        "data": DATA, "teacher": {"model": "wide"}, "recipe": recipe("kd", 1)}).word  # fmt: skip
    assert isinstance(word, Failed)
    assert (word.code, word.param) == ("invalid_teacher", "teacher.model")
    assert "embeddings for a tokenizer of" in word.message or "the network" in word.message


def test_a_tokenizer_trained_on_unusual_texts_is_a_warning(tmp_path: Path) -> None:
    """Most characters of these texts are too rare for the vocabulary."""
    rows = [
        (" ".join(chr(0x4E00 + 7 * number + shift) for shift in range(3)), NAMES[number % 2]) for number in range(90)
    ]
    write_csv(tmp_path / "texts", rows)
    data = {"format": "csv", "train": "texts", **COLUMNS, "tokenizer": {"kind": "wordpiece", "vocabulary": 100}}
    played = run(tmp_path / "job", {"texts": tmp_path / "texts"}, {"data": data, "recipe": recipe("cross-entropy", 1)})
    assert isinstance(played.word, Finished), played.word
    assert any("the tokenizer of the student has no tokens for" in log.message for log in played.of(Log))
