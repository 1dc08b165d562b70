"""Jobs of embeddings of images: what they leave behind, and what they refuse."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from app.recipe.job import JobSpec
from tests.worker.training.builders import finished, play, require_same_bits, write_teacher
from worker.metrics.labelled_vectors import retrieval
from worker.protocol import Assignment, Failed
from worker.students.weights import load_model, read_config

Document = dict[str, Any]
SIDE, CLASSES, SAMPLES = 6, 8, 96
DISTILLED: list[Document] = [
    {"kind": "normface"},
    {"kind": "embedding-distance", "distance": "cosine"},
    {"kind": "similarity-matrix", "compare": "mse"},
    {"kind": "rkd"},
]


def images(seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Patterns in noise, numbered by their classes."""
    labels = np.arange(SAMPLES) % CLASSES
    patterns = np.random.default_rng(0).integers(60, 196, (CLASSES, SIDE, SIDE))
    noise = np.random.default_rng(seed).integers(-40, 40, (SAMPLES, SIDE, SIDE))
    return (patterns[labels] + noise).astype(np.uint8), labels


def stage(folder: Path, teacher: Path | None = None, **changes: Any) -> Assignment:
    folder.mkdir(parents=True, exist_ok=True)
    samples, labels = images()
    np.savez(folder / "data.npz", x=samples, y=labels)
    inputs = {"data": "data.npz", **changes.pop("inputs", {})}
    losses = DISTILLED if teacher else [{"kind": "normface"}]
    recipe = {"losses": losses, "epochs": 2, "batch_size": 16, **changes.pop("recipe", {})}
    job: Document = {
        "task": "image-embedding",
        "data": {"train": "data", "unseen_classes": 4, **changes.pop("data", {})},
        "student": {"architecture": "mlp", "hidden": [8]},
        "embedding": {"dimensions": 5, "normalise": True},
        "export": ["safetensors"],
        "seed": 3,
        "recipe": recipe,
    }
    if teacher:
        shutil.copytree(teacher, folder / "teacher")
        job["teacher"], inputs["teacher"] = {"model": "teacher"}, "teacher"
    return Assignment(spec=JobSpec.model_validate(job | changes), inputs=inputs)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher of wider vectors."""
    folder = tmp_path_factory.mktemp("vectors") / "teacher"
    wide = {"embedding": {"dimensions": 7, "normalise": True}, "student": {"architecture": "mlp", "hidden": [32]}}
    return finished(folder, stage(folder, recipe={"epochs": 20, "optimizer": {"kind": "adamw", "lr": 1e-2}}, **wide))


def report_of(bundle: Path) -> Document:
    told: Document = json.loads((bundle / "report.json").read_text())
    return told


def refusal(assignment: Assignment, folder: Path) -> Failed:
    word = play(assignment, folder).word
    assert isinstance(word, Failed)
    assert word.fault == "user"
    return word


def test_the_report_has_the_metrics_of_classes_that_were_never_trained_on(teacher: Path) -> None:
    report = report_of(teacher)
    split = report["data"]["classes"]
    assert (split["trained"], split["evaluated"], split["unseen"]) == (4, 4, 4)
    assert not set(split["trained_names"]) & set(split["evaluated_names"])
    assert report["samples"] == {"train": SAMPLES // 2, "eval": SAMPLES // 2}
    samples, labels = images()
    held = np.isin(labels, [int(name) for name in split["evaluated_names"]])
    with torch.no_grad():
        vectors = load_model(teacher).eval()(torch.from_numpy(samples[held]).unsqueeze(1))
    for name, value in retrieval(vectors, torch.from_numpy(labels[held]), (1, 5, 10)).items():
        assert report["student"][name] == pytest.approx(float(value), abs=1e-3)
    assert report["student"]["recall_at_1"] > 0.7
    assert report["epochs"]["by"] == "map_at_r"
    assert (report["targets"], report["classes"]) == (7, None)


def test_a_student_learns_from_a_teacher_of_other_width_beside_the_classes(tmp_path: Path, teacher: Path) -> None:
    bundle = finished(tmp_path, stage(tmp_path, teacher, export=["safetensors", "onnx", "onnx-int8", "torch-export"]))
    report = report_of(bundle)
    assert report["teacher"]["map_at_r"] == pytest.approx(report_of(teacher)["student"]["map_at_r"])
    assert -1.0 <= report["student"]["teacher_correlation"] <= 1.0
    assert "teacher_cosine" not in report["student"]
    model, session = load_model(bundle).eval(), onnxruntime.InferenceSession(bundle / "model.onnx")
    pixels = torch.from_numpy(images(1)[0][:3]).unsqueeze(1)
    with torch.no_grad():
        expected = model(pixels)
    assert expected.shape == (3, 5)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(3))
    (found,) = session.run(["embeddings"], {"images": pixels.float().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.0, atol=1e-5)
    program = torch.export.load(bundle / "model.pt2").module()
    torch.testing.assert_close(program(pixels.float()), expected, rtol=0.0, atol=1e-5)
    assert not any("vectors" in name or "scale" in name for name in model.state_dict())
    assert "`embeddings` (N, 5)" in (bundle / "README.md").read_text()


def test_a_stopped_job_goes_on_to_the_same_bits(tmp_path: Path, teacher: Path) -> None:
    require_same_bits(partial(stage, teacher=teacher), tmp_path)


def test_batches_by_class_go_on_to_the_same_bits(tmp_path: Path) -> None:
    require_same_bits(partial(stage, recipe={"samples_per_class": 4}), tmp_path)
    bundles = [tmp_path / "straight" / "bundle", finished(tmp_path / "shuffled", stage(tmp_path / "shuffled"))]
    one, other = (load_model(bundle).state_dict() for bundle in bundles)
    assert any(not torch.equal(values, other[name]) for name, values in one.items())


def test_batches_of_more_classes_than_there_are_end_the_job_by_their_field(tmp_path: Path) -> None:
    word = refusal(stage(tmp_path, recipe={"samples_per_class": 2}), tmp_path)
    assert (word.code, word.param) == ("invalid_job", "recipe.samples_per_class")
    assert "a batch has 8 classes, and 4 are trained on; accepted: at most 4 classes" in word.message


def test_without_dimensions_a_vector_has_128_numbers_and_its_own_length(tmp_path: Path) -> None:
    config = read_config(finished(tmp_path, stage(tmp_path, embedding=None)))
    assert config.targets == 128
    assert config.embedding is not None
    assert not config.embedding.normalise


def test_a_student_that_goes_on_has_the_vectors_of_its_model(tmp_path: Path, teacher: Path) -> None:
    shutil.copytree(teacher, tmp_path / "old")
    student = {"architecture": "pretrained", "model": "old"}
    recipe = {"optimizer": {"kind": "sgd", "lr": 1e-9}, "epochs": 1}
    made = stage(tmp_path, student=student, embedding=None, inputs={"old": "old"}, recipe=recipe)
    bundle = finished(tmp_path, made)
    old, new = (load_model(folder).eval() for folder in (teacher, bundle))
    assert new.config.embedding == old.config.embedding
    pixels = torch.from_numpy(images()[0][:4]).unsqueeze(1)
    with torch.no_grad():
        torch.testing.assert_close(new(pixels), old(pixels), rtol=0.0, atol=1e-4)


def test_a_student_may_go_on_from_a_classifier(tmp_path: Path) -> None:
    write_teacher(tmp_path / "old")
    student = {"architecture": "pretrained", "model": "old"}
    bundle = finished(tmp_path, stage(tmp_path, student=student, inputs={"old": "old"}))
    assert read_config(bundle).targets == 5


def test_an_evaluation_file_may_have_classes_that_are_trained_on_and_others(tmp_path: Path) -> None:
    samples, labels = images(1)
    np.savez(tmp_path / "eval.npz", x=samples, y=labels + 4)
    made = stage(tmp_path, data={"eval": "eval", "unseen_classes": None}, inputs={"eval": "eval.npz"})
    split = report_of(finished(tmp_path, made))["data"]["classes"]
    assert (split["trained"], split["evaluated"], split["unseen"]) == (8, 8, 4)


def test_two_steps_of_micro_batches_are_those_of_whole_ones(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finished(whole, stage(whole))
    finished(parts, stage(parts, recipe={"accumulate": 4}))
    one, other = (load_model(folder / "bundle").state_dict() for folder in (whole, parts))
    for name, values in one.items():
        torch.testing.assert_close(other[name], values, rtol=1e-4, atol=1e-5)


def test_more_classes_held_out_than_there_are_end_the_job_by_their_field(tmp_path: Path) -> None:
    word = refusal(stage(tmp_path, data={"unseen_classes": 7}), tmp_path)
    assert (word.code, word.param) == ("invalid_data", "data.unseen_classes")
    assert "accepted: 2 to 6" in word.message
