"""Jobs of students that encode the texts of labels, from their files to models that teach and are trained further."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.plan import LABEL_PASSES
from tests import kinds
from tests.worker.distributed.ranks_stage import Act, play_together
from tests.worker.training.builders import finished, play, require_same_bits, with_teacher
from worker.data import label_sets
from worker.protocol import Assignment, Failed, Finished, Metrics
from worker.students.dual_encoder import encoder_config
from worker.students.measure import network_cost
from worker.students.weights import load_model
from worker.tasks import multi_label

NAMES = ["cat", "dog", "house", "river", "stone", "tree"]
WORDS = ["red", "blue", "old", "new", "big"]
FORMATS = ["safetensors", "onnx", "onnx-int8", "torch-export"]
BERT: dict[str, Any] = {
    **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 16, "max_position_embeddings": 16},
}
DUAL: dict[str, Any] = {
    "architecture": "dual-encoder",
    "encoder": {"architecture": "transformers", "config": BERT},
    "temperature": 0.1,
}
CALM: dict[str, Any] = {
    **DUAL,
    "encoder": {
        "architecture": "transformers",
        "config": {**BERT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    },
}
"""Without dropout, which every process draws for itself."""
STILL: dict[str, Any] = {"max_steps": 1, "epochs": 1, "optimizer": {"kind": "adamw", "lr": 1e-12, "weight_decay": 0.0}}
"""Training that changes nothing."""


def write_texts(path: Path, called: dict[str, str] | None = None) -> None:
    """Texts that name what they are about; a label is called as its text, or as `called` says."""
    draw, names = random.Random(0), called or {}
    with path.open("w") as file:
        for _ in range(80):
            about = [name for name in NAMES if draw.random() < 0.35]
            words = [*draw.sample(WORDS, 2), *about]
            line = {"text": " ".join(draw.sample(words, len(words))), "tags": [names.get(each, each) for each in about]}
            file.write(json.dumps(line) + "\n")


def document(recipe: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    base = {"format": "jsonl", "train": "texts", "input_columns": ["text"], "label_columns": ["tags"], "max_length": 16}
    learning = {"losses": [{"kind": "dexml"}], "epochs": 2, "batch_size": 16}
    return {
        "task": "multi-label-classification",
        "data": base | (data or {}),
        "student": DUAL,
        "recipe": learning | (recipe or {}),
        "export": ["safetensors"],
        "seed": 1,
    } | more


def stage(
    folder: Path, teacher: Path | None = None, called: dict[str, str] | None = None, **changes: Any
) -> Assignment:
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(folder / "texts", called)
    return with_teacher(folder, document(**changes), teacher)


def started(folder: Path, encoder: Path, **changes: Any) -> Assignment:
    """A job whose encoder starts from the weights in a copy of the folder `encoder`."""
    folder.mkdir(parents=True)
    write_texts(folder / "texts")
    shutil.copytree(encoder, folder / "start")
    student = {"architecture": "dual-encoder", "encoder": {"architecture": "pretrained", "model": "start"}}
    spec = JobSpec.model_validate(document(student=student, **changes))
    return Assignment(spec=spec, inputs={"texts": "texts", "start": "start"})


def state(bundle: Path) -> dict[str, Tensor]:
    return load_file(bundle / "model.safetensors")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a student that learned from the texts, in all formats."""
    folder = tmp_path_factory.mktemp("dual") / "job"
    recipe = {
        **{"losses": [{"kind": "dexml", "criterion": "bce"}], "epochs": 12, "batch_size": 8},
        **{"optimizer": {"kind": "adamw", "lr": 0.01}, "ema_decay": 0.9},
    }
    more: dict[str, Any] = {"export": FORMATS, "evaluation": {"keep": "best"}, "data": {"eval": "texts"}}
    return finished(folder, stage(folder, recipe=recipe, student=CALM, **more))


def test_a_student_finds_the_labels_of_texts_by_the_labels_own_texts(learned: Path) -> None:
    report = json.loads((learned / "report.json").read_text())
    assert report["student"]["map"] > 0.95
    assert report["student"]["onnx"]["map"] == pytest.approx(report["student"]["map"], abs=1e-3)
    assert report["student"]["torch_export"]["map"] == pytest.approx(report["student"]["map"], abs=1e-3)
    assert 0.0 <= report["student"]["onnx_int8"]["same_choice"] <= 1.0
    assert report["left_out"] == {}


def test_the_exported_files_have_the_vectors_of_labels_and_encode_texts_alone(learned: Path) -> None:
    weights, model = state(learned), load_model(learned)
    assert weights["labels"].shape == (6, 16)
    torch.testing.assert_close(weights["labels"].norm(dim=1), torch.ones(6))
    assert all(name == "labels" or name.startswith("encoder.") for name in weights)
    assert (model.config.task, model.config.class_names) == ("multi-label-classification", NAMES)
    tokens = np.random.default_rng(0).integers(5, model.config.input.vocabulary, (3, 9))  # type: ignore[union-attr]
    session = onnxruntime.InferenceSession(learned / "model.onnx")
    (logits,) = session.run(["logits"], {"tokens": tokens})
    torch.testing.assert_close(torch.from_numpy(logits), model(torch.from_numpy(tokens)), rtol=0.0, atol=1e-4)
    assert list(json.loads(session.get_modelmeta().custom_metadata_map["id2label"]).values()) == NAMES
    assert (model(torch.from_numpy(tokens)).abs() <= 1 / 0.1 + 1e-4).all()


def test_the_operations_of_encoding_labels_are_counted(learned: Path) -> None:
    train, config = json.loads((learned / "report.json").read_text())["train"], load_model(learned).config
    of_three_tokens = config.model_copy(update={"input": config.input.model_copy(update={"length": 3})})
    label = network_cost(encoder_config(of_three_tokens)).flops
    of_samples = 3 * network_cost(config).flops * 80 * 12
    assert train["student_flops"] == of_samples + LABEL_PASSES * len(NAMES) * label * train["steps"]
    assert train["flops"] == train["student_flops"]


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"accumulate": 2, "ema_decay": 0.8, "precision": "bf16"}, "evaluation": {"keep": "best"}},
        {"recipe": {"losses": [{"kind": "binary-cross-entropy"}, {"kind": "dexml", "criterion": "top-k", "k": 2}]}},
    ],
)
def test_a_student_resumes_to_the_same_bits(tmp_path: Path, changes: dict[str, Any]) -> None:
    require_same_bits(partial(stage, **changes), tmp_path)


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    losses = [{"kind": "dexml"}, {"kind": "dexml", "criterion": "top-k", "k": 2}]
    recipe = {"losses": losses, "accumulate": 2, "batch_size": 10, "clip_norm": 0.5}
    finished(tmp_path / "one", stage(tmp_path / "one", student=CALM, recipe=recipe))
    act = Act(stage(tmp_path / "two", student=CALM, recipe=recipe), tmp_path / "two")
    assert isinstance(play_together({"two": act})["two"].word, Finished)
    first, second = (state(tmp_path / name / "bundle") for name in ("one", "two"))
    for name, each in first.items():
        torch.testing.assert_close(second[name], each, rtol=1e-3, atol=2e-5, msg=name)


def test_a_label_is_encoded_by_its_text(tmp_path: Path) -> None:
    called = {"cat": "a", "dog": "b", "house": "c"}  # in the same order
    texts = {name: text for text, name in called.items()}
    named = finished(tmp_path / "named", stage(tmp_path / "named"))
    student = {**DUAL, "label_texts": texts}
    given = finished(tmp_path / "given", stage(tmp_path / "given", called=called, student=student))
    first, second = state(named), state(given)
    assert all(torch.equal(second[name], each) for name, each in first.items())
    assert load_model(given).config.class_names == ["a", "b", "c", "river", "stone", "tree"]
    assert json.loads((given / "config.json").read_text())["architecture"]["label_texts"] == {}


def write_label_texts(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("".join(json.dumps({"label": name, "text": text}) + "\n" for name, text in rows))


def with_label_texts(folder: Path, rows: list[tuple[str, str]], **changes: Any) -> Assignment:
    """A job whose labels a, b and c stand for the first three names; a file has their texts."""
    assignment = stage(folder, called=dict(zip(NAMES, "abc", strict=False)), **changes)
    write_label_texts(folder / "called", rows)
    data = assignment.spec.data.model_copy(update={"label_texts": "called"})
    inputs = {**assignment.inputs, "called": "called"}
    return assignment.model_copy(update={"spec": assignment.spec.model_copy(update={"data": data}), "inputs": inputs})


CALLED = [*zip("abc", NAMES, strict=False), *((name, name) for name in NAMES[3:])]


def test_a_file_has_the_texts_of_labels(tmp_path: Path) -> None:
    """Also of labels that no sample has; `student.label_texts` comes before it."""
    named = finished(tmp_path / "named", stage(tmp_path / "named"))
    rows = [("x", "no sample has it"), ("c", "wrong"), *(row for row in CALLED if row[0] != "c")]
    student = {**DUAL, "label_texts": {"c": NAMES[2]}}
    given = finished(tmp_path / "given", with_label_texts(tmp_path / "given", rows, student=student))
    first, second = state(named), state(given)
    assert all(torch.equal(second[name], each) for name, each in first.items())
    assert json.loads((given / "report.json").read_text())["sources"]["data.label_texts"]["reference"] == "called"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (CALLED[1:], "data.label_texts has no text for label 'a'; accepted: one for each label of data.train"),
        ([*CALLED, ("b", "another")], "data.label_texts has another text for label 'b' in row 6"),
        ([("a", " "), *CALLED[1:]], "data.label_texts has an empty text in row 0, for label 'a'"),
    ],
)
def test_a_file_that_lacks_a_text_is_refused(tmp_path: Path, rows: list[tuple[str, str]], message: str) -> None:
    word = play(with_label_texts(tmp_path, rows), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "invalid_data", "data.label_texts")
    assert message in word.message


def test_listed_labels_train_the_model_of_whole_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [{"kind": "dexml", "criterion": "softmax"}, {"kind": "dexml", "criterion": "top-k", "k": 2}]
    changes: dict[str, Any] = {"recipe": {"losses": losses}, "export": FORMATS[:2]}
    whole = finished(tmp_path / "whole", stage(tmp_path / "whole", **changes))
    for module in (label_sets, multi_label):
        monkeypatch.setattr(module, "MANY_LABELS", 5)
    listed = finished(tmp_path / "listed", stage(tmp_path / "listed", **changes))
    first, second = state(whole), state(listed)
    for name, each in first.items():
        torch.testing.assert_close(second[name], each, rtol=1e-4, atol=1e-5, msg=name)


def test_a_dual_encoder_teaches_in_half_precision(tmp_path: Path, learned: Path) -> None:
    folder, recipe = tmp_path / "student", {"losses": [{"kind": "binary-kd"}], "max_steps": 1, "epochs": 1}
    assignment = stage(folder, learned, recipe=recipe)
    teacher = {"model": "teacher", "precision": "bf16"}
    spec = JobSpec.model_validate({**document(recipe=recipe), "teacher": teacher})
    report = json.loads((finished(folder, assignment.model_copy(update={"spec": spec})) / "report.json").read_text())
    assert 0.0 < report["train"]["teacher_fidelity"]["teacher"]["max_difference"] < 1.0


def test_a_dual_encoder_teaches_a_student_whose_labels_are_in_another_order(tmp_path: Path, learned: Path) -> None:
    order = [NAMES[place] for place in (2, 0, 5, 3, 1, 4)]
    recipe = {"losses": [{"kind": "binary-kd"}], "max_steps": 1, "epochs": 1}
    student = {"architecture": "transformers", "config": BERT}
    folder = tmp_path / "student"
    more: dict[str, Any] = {"recipe": recipe, "student": student, "data": {"class_order": order, "eval": "texts"}}
    report = json.loads((finished(folder, stage(folder, learned, **more)) / "report.json").read_text())
    own = json.loads((learned / "report.json").read_text())["student"]
    assert report["teacher"]["map"] == pytest.approx(own["map"])
    assert report["teacher"]["nll"] == pytest.approx(own["nll"], rel=1e-5)


def test_an_encoder_starts_from_that_of_another_dual_encoder(tmp_path: Path, learned: Path) -> None:
    bundle = finished(tmp_path / "job", started(tmp_path / "job", learned, recipe=STILL))
    first, second = state(learned), state(bundle)
    for name, each in first.items():
        torch.testing.assert_close(second[name], each, rtol=1e-5, atol=1e-6, msg=name)
    assert json.loads((bundle / "report.json").read_text())["origin"] == {"started_from": "start"}


def test_an_encoder_starts_from_a_sentence_encoder(tmp_path: Path) -> None:
    kinds.write_encoder(tmp_path / "encoder")
    bundle = finished(tmp_path / "job", started(tmp_path / "job", tmp_path / "encoder", recipe=STILL))
    first, second = state(tmp_path / "encoder"), state(bundle)
    assert first.keys() == {name.removeprefix("encoder.") for name in second if name != "labels"} - {"position_ids"}
    for name, each in first.items():
        torch.testing.assert_close(second[f"encoder.{name}"], each, rtol=1e-5, atol=1e-6, msg=name)


def test_an_encoder_starts_from_a_classifier_of_texts(tmp_path: Path) -> None:
    plain = stage(tmp_path / "plain", student={"architecture": "transformers", "config": BERT})
    classifier = finished(tmp_path / "plain", plain)
    bundle = finished(tmp_path / "job", started(tmp_path / "job", classifier, recipe=STILL))
    first, second = state(classifier), state(bundle)
    for name in second.keys() - {"labels"}:
        own = first[f"bert.{name.removeprefix('encoder.')}"]
        torch.testing.assert_close(second[name], own, rtol=1e-5, atol=1e-6, msg=name)


def test_features_are_those_of_texts(tmp_path: Path, learned: Path) -> None:
    """Not of the labels that are encoded beside them: a student that is its teacher has the same."""
    tap = "encoder.encoder.layer.0"
    recipe = {**STILL, "losses": [{"kind": "rkd", "pair": {"teacher": tap, "student": tap}}]}
    assignment = started(tmp_path / "job", learned, recipe=recipe, teacher={"model": "start"})
    played = play(assignment, tmp_path / "job")
    assert isinstance(played.word, Finished), played.word
    losses = [metrics.values["train/loss/rkd"] for metrics in played.of(Metrics) if "train/loss/rkd" in metrics.values]
    assert losses == pytest.approx([0.0], abs=1e-6)


def test_labels_without_names_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    rows = [{"text": "a b", "tags": [row % 3]} for row in range(20)]
    (folder / "texts").write_text("\n".join(map(json.dumps, rows)) + "\n")
    spec = JobSpec.model_validate(document(data={"classes": 3}))
    word = play(Assignment(spec=spec, inputs={"texts": "texts"}), folder).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "invalid_job", "data.class_order")


@pytest.mark.parametrize(
    ("student", "param"),
    [
        ({**DUAL, "label_texts": {"cow": "an animal"}}, "student.label_texts"),
        (
            {**DUAL, "encoder": {"architecture": "transformers", "config": {**BERT, "max_position_embeddings": 8}}},
            "student.encoder.config.max_position_embeddings",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(tmp_path: Path, student: dict[str, Any], param: str) -> None:
    word = play(stage(tmp_path, student=student), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", param)


def test_a_dual_encoder_is_trained_further_as_an_encoder(tmp_path: Path, learned: Path) -> None:
    assignment = started(tmp_path / "job", learned)
    plain = {"architecture": "pretrained", "model": "start"}
    spec = JobSpec.model_validate({**document(), "student": plain})
    word = play(assignment.model_copy(update={"spec": spec}), tmp_path / "job").word
    assert not isinstance(word, Finished)
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "student.architecture")
