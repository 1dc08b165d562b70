"""Jobs of text classifiers: their bundles have a model and its tokenizer, and can serve as teachers."""

from __future__ import annotations

import csv
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.worker.training.builders import finished, play, require_same_bits, with_teacher
from worker.data.tokens import load_tokenizer
from worker.protocol import Assignment, Failed
from worker.students.weights import load_model

GOOD, BAD, OTHER = "good fine great lovely", "bad poor awful dull", "the film was a rather long one and so on"
ROWS = 60
SIZES = {"num_attention_heads": 2, "max_position_embeddings": 40, "num_hidden_layers": 2}
TEACHER = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, **SIZES}
STUDENT = {**TEACHER, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
TOKENIZERS: dict[str, dict[str, Any]] = {"same": {}, "another": {"tokenizer": {"kind": "bpe", "vocabulary": 520}}}


def sentences() -> list[tuple[str, str]]:
    """Texts of a few words with the name of their class, which two of the words determine."""
    draw = random.Random(0)
    names = ["poor", "fair"] * (ROWS // 2)
    cues = (draw.choices((GOOD if name == "fair" else BAD).split(), k=2) for name in names)
    rest = (draw.choices(OTHER.split(), k=draw.randint(1, 9)) for _ in names)
    return [
        (" ".join(draw.sample([*some, *more], len(some) + len(more))), name)
        for some, more, name in zip(cues, rest, names, strict=True)
    ]


def write_texts(path: Path, form: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        if form == "jsonl":
            file.writelines(json.dumps({"text": text, "verdict": name}) + "\n" for text, name in sentences())
        else:
            csv.writer(file).writerows([("text", "verdict"), *sentences()])


def attention(layer: int) -> dict[str, str]:
    """Modules of a BERT's queries, keys and values."""
    return {
        f"{what[:3]}{what[3:]}": f"bert.encoder.layer.{layer}.attention.self.{where}"
        for what, where in (("queries", "query"), ("keys", "key"), ("values", "value"))
    }


RELATION = {
    "kind": "attention-relation",
    "relation_heads": 2,
    "layer": {"teacher": attention(1), "student": attention(0)},
}
DISTILLED = [{"kind": "cross-entropy"}, {"kind": "kd", "temperature": 2.0}]


def stage(
    folder: Path,
    network: dict[str, Any],
    teacher: Path | None = None,
    form: str = "csv",
    losses: list[dict[str, Any]] | None = None,
    **more: Any,
) -> Assignment:
    """Put a job's texts, and its teacher's files, into `folder`."""
    folder.mkdir(parents=True)
    write_texts(folder / "texts", form)
    data = {"format": form, "train": "texts", "input_columns": ["text"], "label_columns": ["verdict"], "max_length": 32}
    job = {
        "task": "text-classification",
        "data": data | more.pop("data", {}),
        "student": {"architecture": "transformers", "config": network},
        "recipe": {
            "losses": losses or [{"kind": "cross-entropy"}],
            "optimizer": {"kind": "adamw", "lr": 3e-3},
            "epochs": 2,
            "batch_size": 16,
        },
        "export": ["safetensors"],
        "seed": 1,
    }
    return with_teacher(folder, job | more, teacher)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher that learned from the texts."""
    folder = tmp_path_factory.mktemp("texts") / "teacher"
    return finished(folder, stage(folder, TEACHER))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_library_opens_a_student_with_its_tokenizer(
    tmp_path: Path, teacher: Path, tokenizer: str, form: str
) -> None:
    losses = DISTILLED + ([RELATION] if tokenizer == "same" else [])
    folder = tmp_path / "student"
    bundle = finished(folder, stage(folder, STUDENT, teacher, form, losses, data=TOKENIZERS[tokenizer]))
    read, theirs = AutoTokenizer.from_pretrained(bundle), AutoModelForSequenceClassification.from_pretrained(bundle)
    texts = [text for text, _ in sentences()[:5]]
    encoded = read(texts, padding=True, return_tensors="pt")
    ours = load_model(bundle)
    torch.testing.assert_close(theirs(**encoded).logits, ours(encoded["input_ids"]))
    assert theirs.config.id2label == dict(enumerate(ours.config.class_names or []))
    same = load_tokenizer(bundle, "").digest == load_tokenizer(teacher, "").digest
    assert same == (tokenizer == "same")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_distilled_student_resumes_to_the_same_bits(tmp_path: Path, teacher: Path, tokenizer: str) -> None:
    losses = DISTILLED + ([RELATION] if tokenizer == "same" else [])
    make = partial(stage, network=STUDENT, teacher=teacher, losses=losses, data=TOKENIZERS[tokenizer])
    require_same_bits(make, tmp_path)


def test_the_graphs_of_a_student_take_any_number_of_texts_of_any_length(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    formats = ["safetensors", "onnx", "onnx-int8", "torch-export"]
    bundle = finished(folder, stage(folder, STUDENT, teacher, losses=DISTILLED, export=formats))
    session, model = onnxruntime.InferenceSession(bundle / "model.onnx"), load_model(bundle)
    program = torch.export.load(bundle / "model.pt2").module()
    draw = np.random.default_rng(0)
    for count, length in ((1, 32), (3, 7), (70, 12)):
        tokens = draw.integers(5, model.config.input.vocabulary, (count, length))  # type: ignore[union-attr]  # texts
        tokens[0, 5:] = 0
        expected = model(torch.from_numpy(tokens))
        torch.testing.assert_close(
            torch.from_numpy(session.run(["logits"], {"tokens": tokens})[0]), expected, rtol=0.0, atol=1e-5
        )
        torch.testing.assert_close(program(torch.from_numpy(tokens)), expected, rtol=0.0, atol=1e-5)


def test_losses_that_compare_tokens_need_the_same_tokenizer(tmp_path: Path, teacher: Path) -> None:
    for loss in (RELATION, {"kind": "hint", "pairs": [{"teacher": "bert.encoder", "student": "bert.encoder"}]}):
        folder = tmp_path / str(loss["kind"])
        word = play(stage(folder, STUDENT, teacher, losses=[loss], data=TOKENIZERS["another"]), folder).word
        assert isinstance(word, Failed)
        assert (word.fault, word.code) == ("user", "invalid_job")
        assert "different tokenizers" in word.message


def test_a_smaller_copy_of_a_teacher_keeps_its_tokenizer(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    bundle = finished(
        folder, stage(folder, STUDENT, teacher, losses=DISTILLED, student={"architecture": "shrink", "layers": 1})
    )
    assert load_tokenizer(bundle, "").digest == load_tokenizer(teacher, "").digest
