"""Classifiers of texts whose last layer is a codebook, and the files that the Transformers library opens."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.worker.training.builders import finished, play, require_same_bits, with_teacher
from worker.protocol import Assignment, Failed
from worker.students.weights import InvalidModel, load_model

NAMES = ["north", "south", "east", "west", "up", "down"]
CODES = 4
HEAD = {"kind": "vq-logits", "codes": CODES}
SIZES = {"num_attention_heads": 2, "max_position_embeddings": 40, "num_hidden_layers": 1}
BERT = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 16, **SIZES}
ROBERTA = {**BERT, "model_type": "roberta", "hidden_size": 8}
DISTILLED = [{"kind": "cross-entropy"}, {"kind": "kd", "temperature": 2.0}]


def stage(folder: Path, student: dict[str, Any], teacher: Path | None = None, **more: Any) -> Assignment:
    """Put texts of six classes, named by a word in them, and the teacher's files into `folder`."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    texts = [(f"go {draw.choice(['far', 'near'])} {name} {draw.choice(['now', 'later'])}", name) for name in NAMES * 12]
    lines = [json.dumps({"text": text, "way": name}) + "\n" for text, name in texts]
    (folder / "texts").write_text("".join(lines), encoding="utf-8")
    data = {"format": "jsonl", "train": "texts", "input_columns": ["text"], "label_columns": ["way"], "max_length": 16}
    recipe = {"losses": DISTILLED if teacher else DISTILLED[:1], "optimizer": {"kind": "adamw", "lr": 3e-3}}
    recipe = {**recipe, "epochs": 6, "batch_size": 16, **more.pop("recipe", {})}
    job = {"task": "text-classification", "data": data, "student": student, "recipe": recipe, "seed": 1}
    return with_teacher(folder, {**job, "export": ["safetensors"], **more}, teacher)


def coded(network: dict[str, Any] = BERT, **head: Any) -> dict[str, Any]:
    return {"architecture": "transformers", "config": network, "head": {**HEAD, **head}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "teacher"
    return finished(folder, stage(folder, {"architecture": "transformers", "config": BERT}))


@pytest.fixture(scope="module", params=[BERT, ROBERTA], ids=["bert", "roberta"])
def bundle(request: pytest.FixtureRequest, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coded") / "student"
    formats = ["safetensors", "onnx", "torch-export"]
    return finished(folder, stage(folder, coded(request.param), teacher, export=formats))


def test_the_library_opens_a_student_by_a_row_for_every_class(bundle: Path) -> None:
    read, theirs = AutoTokenizer.from_pretrained(bundle), AutoModelForSequenceClassification.from_pretrained(bundle)
    ours, encoded = load_model(bundle), read("go far west now", return_tensors="pt")
    expected = ours(encoded["input_ids"])
    torch.testing.assert_close(theirs(**encoded).logits, expected)
    assert expected.shape == (1, len(NAMES))
    assert len(expected.unique()) <= CODES
    assert sorted(theirs.config.label2id) == sorted(NAMES)
    session = onnxruntime.InferenceSession(bundle / "model.onnx")
    (found,) = session.run(["logits"], {"tokens": encoded["input_ids"].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.0, atol=1e-5)


def test_a_built_in_network_of_texts_takes_a_codebook(tmp_path: Path, teacher: Path) -> None:
    network = {"architecture": "transformer", "width": 8, "depth": 1, "heads": 2, "head": HEAD}
    folder = tmp_path / "job"
    bundle = finished(folder, stage(folder, network, teacher, export=["safetensors", "onnx"]))
    model = load_model(bundle)
    assert model.codebook is not None
    assert len(model.codebook.codes.unique()) == CODES


def test_the_report_has_what_it_can_not_learn(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    figures = report["codebook"]
    assert (figures["codes"], figures["codes_in_use"]) == (CODES, CODES)
    assert figures["least_kl"] < report["student"]["kl"]
    assert report["student"]["accuracy"] <= figures["highest_accuracy"] < 1.0


def test_a_student_resumes_to_the_same_bits(tmp_path: Path, teacher: Path) -> None:
    make = partial(stage, student=coded(), teacher=teacher, recipe={"ema_decay": 0.9, "epochs": 2})
    require_same_bits(make, tmp_path)


def test_a_student_can_teach_and_be_trained_further(tmp_path: Path, bundle: Path) -> None:
    still = {"optimizer": {"kind": "sgd", "lr": 1e-30, "momentum": 0.0}, "epochs": 1, "max_steps": 1}
    every = [*DISTILLED, {"kind": "nkd"}]
    plain = {"architecture": "transformers", "config": BERT}
    finished(tmp_path / "taught", stage(tmp_path / "taught", plain, bundle, recipe={"losses": every, "epochs": 1}))
    further = {"architecture": "pretrained", "model": "teacher"}
    again = finished(tmp_path / "again", stage(tmp_path / "again", further, bundle, recipe=still))
    before, after = (load_model(each).network.state_dict() for each in (bundle, again))
    torch.testing.assert_close(after, before)


def test_files_that_are_no_codebook_are_refused(tmp_path: Path, bundle: Path) -> None:
    weights = load_file(bundle / "model.safetensors")
    (name,) = (name for name in weights if name.endswith(".codes"))
    for case, changed, message in (
        ("missing", {}, f"lacks the tensor '{name}'"),
        ("large", {name: weights[name] + CODES}, f"not from 0 to {CODES - 1}"),
        ("other", {name: (weights[name] + torch.arange(len(NAMES)).int()) % CODES}, "different weights"),
    ):
        folder = tmp_path / case
        folder.mkdir()
        for path in bundle.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
        kept = {key: tensor for key, tensor in weights.items() if key != name}
        save_file({**kept, **changed}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InvalidModel, match=message):
            load_model(folder)


def test_as_many_codes_as_classes_end_the_job_as_its_owners_fault(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "job"
    word = play(stage(folder, coded(codes=len(NAMES)), teacher), folder).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "student.head.codes")
