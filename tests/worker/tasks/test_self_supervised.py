"""Jobs of self-supervision: what they leave behind, what they are good for, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from app.recipe.data.sources import ImageData
from app.recipe.job import JobSpec
from tests.worker.tasks.test_image_embedding import images
from tests.worker.training.builders import finished, play, require_same_bits
from worker.data.augment import Augmenter
from worker.data.batches import Batches, whole_split
from worker.metrics.probes import probes
from worker.protocol import Assignment, Report
from worker.students.weights import load_model, read_config

Document = dict[str, Any]
AUGMENT: list[Document] = [{"kind": "resized-crop", "least_area": 0.3}, {"kind": "color-jitter"}]
PROBES = {"linear_accuracy", "knn_accuracy", "bayes_accuracy"}


def stage(folder: Path, *, labels: bool = True, **changes: Any) -> Assignment:
    folder.mkdir(parents=True, exist_ok=True)
    samples, classes = images()
    np.savez(folder / "data.npz", x=samples, **({"y": classes} if labels else {}))
    np.savez(folder / "labelled.npz", x=images(1)[0], y=classes)
    job: Document = {
        "task": "self-supervised",
        "data": {"train": "data", "augment": AUGMENT, **changes.pop("data", {})},
        "student": {"architecture": "mlp", "hidden": [8]},
        "embedding": {"dimensions": 5},
        "export": ["safetensors"],
        "seed": 3,
        "recipe": {"losses": [{"kind": "ntxent"}], "epochs": 2, "batch_size": 16, **changes.pop("recipe", {})},
    }
    inputs = {"data": "data.npz", "labelled": "labelled.npz", **changes.pop("inputs", {})}
    return Assignment(spec=JobSpec.model_validate(job | changes), inputs=inputs)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with all exports."""
    folder = tmp_path_factory.mktemp("views") / "job"
    recipe = {"epochs": 20, "optimizer": {"kind": "adamw", "lr": 1e-2}}
    return finished(folder, stage(folder, recipe=recipe, export=["safetensors", "onnx", "torch-export"]))


def report_of(bundle: Path) -> Document:
    told: Document = json.loads((bundle / "report.json").read_text())
    return told


def test_the_report_has_the_probes_of_the_frozen_features(bundle: Path) -> None:
    report = report_of(bundle)
    held = 19  # a fifth of 96 samples
    assert report["data"]["labels"] == {"evaluated": held, "classes": 8, "trained": 0}
    assert PROBES | {"view_recall_at_1", "view_loss"} <= report["student"].keys()
    assert report["epochs"]["by"] == "linear_accuracy"


def test_training_brings_views_of_one_sample_together(tmp_path: Path, bundle: Path) -> None:
    untrained = finished(tmp_path, stage(tmp_path, recipe={"optimizer": {"kind": "sgd", "lr": 1e-9}, "epochs": 1}))
    before, after = (report_of(folder)["student"] for folder in (untrained, bundle))
    assert after["view_loss"] < before["view_loss"] - 0.05


def test_an_evaluation_file_alone_may_have_labels(tmp_path: Path) -> None:
    bundle = finished(tmp_path, stage(tmp_path, labels=False, data={"eval": "labelled"}))
    report, (samples, labels) = report_of(bundle), images(1)
    assert report["data"]["labels"]["evaluated"] == len(labels)
    with torch.no_grad():
        vectors = load_model(bundle).eval()(torch.from_numpy(samples).unsqueeze(1))
    for name, value in probes(vectors, torch.from_numpy(labels)).items():
        assert report["student"][name] == pytest.approx(float(value), abs=1e-3)


def test_without_labels_the_loss_of_views_is_reported_and_the_log_says_so(tmp_path: Path) -> None:
    played = play(stage(tmp_path, labels=False), tmp_path)
    report = report_of(tmp_path / "bundle")
    assert not PROBES & report["student"].keys()
    assert {"view_loss", "view_recall_at_1"} <= report["student"].keys()
    assert report["epochs"]["by"] == "view_recall_at_1"
    assert any("no labels" in told and "view_loss" in told for told in messages(played.reports))


def messages(reports: list[Report]) -> list[str]:
    return [str(getattr(report, "message", "")) for report in reports]


def test_labels_change_no_weight(tmp_path: Path) -> None:
    with_labels = finished(tmp_path / "a", stage(tmp_path / "a", data={"eval": "labelled"}))
    without = finished(tmp_path / "b", stage(tmp_path / "b", labels=False, data={"eval": "labelled"}))
    one, other = (load_model(folder).state_dict() for folder in (with_labels, without))
    assert all(torch.equal(values, other[name]) for name, values in one.items())


def test_what_is_exported_is_the_student_without_the_projection(bundle: Path) -> None:
    model = load_model(bundle).eval()
    assert not any("views" in name for name in model.state_dict())
    pixels = torch.from_numpy(images(1)[0][:3]).unsqueeze(1)
    with torch.no_grad():
        expected = model(pixels)
    assert expected.shape == (3, 5)
    (found,) = onnxruntime.InferenceSession(bundle / "model.onnx").run(
        ["embeddings"], {"images": pixels.float().numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.0, atol=1e-5)
    program = torch.export.load(bundle / "model.pt2").module()
    torch.testing.assert_close(program(pixels.float()), expected, rtol=0.0, atol=1e-5)


def test_a_stopped_job_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    require_same_bits(stage, tmp_path)


def test_a_batch_has_two_different_views_of_each_sample_one_after_the_other() -> None:
    samples = whole_split({"images": torch.from_numpy(images()[0]).unsqueeze(1)}, torch.arange(96))
    data = ImageData(train="f", augment=AUGMENT)  # type: ignore[arg-type]  # as documents
    batches = Batches(samples, 10, 3, Augmenter(data, samples, None, 3, views=2))
    batch = batches.at(0)
    assert (len(batch), batch.samples, batch.rows_per_sample) == (20, 10, 2)
    assert torch.equal(batch.index[0::2], batch.index[1::2])
    assert torch.equal(batch.targets, batch.index)
    pixels = batch.inputs["images"]
    assert not torch.equal(pixels[0::2], pixels[1::2])
    single = Batches(samples, 10, 3, Augmenter(data, samples, None, 3)).at(0)
    assert torch.equal(single.inputs["images"], pixels[0::2])
    assert torch.equal(batches.at(12).inputs["images"], batches.at(12).inputs["images"])


def test_its_model_is_a_start_and_a_teacher_of_others(tmp_path: Path, bundle: Path) -> None:
    shutil.copytree(bundle, tmp_path / "old")
    start = {"student": {"architecture": "pretrained", "model": "old"}, "inputs": {"old": "old"}}
    classes: Document = {
        "task": "image-classification",
        "data": {"augment": []},
        "embedding": None,
        "recipe": {"losses": [{"kind": "cross-entropy"}], "epochs": 1, "optimizer": {"kind": "sgd", "lr": 1e-9}},
    }
    tuned = finished(tmp_path / "a", moved(stage(tmp_path / "a", **classes, **start), bundle))
    assert read_config(tuned).classes == 8
    old, new = (load_model(folder).state_dict() for folder in (bundle, tuned))
    body = [name for name, values in old.items() if new[name].shape == values.shape]
    assert len(body) == len(old) - 2  # weight and offset of the last layer
    for name in body:
        torch.testing.assert_close(new[name], old[name], rtol=0.0, atol=1e-6)
    taught: Document = {
        "task": "image-embedding",
        "teacher": {"model": "old"},
        "data": {"augment": []},
        "inputs": {"old": "old"},
        "recipe": {"losses": [{"kind": "embedding-distance"}], "epochs": 1},
    }
    distilled = finished(tmp_path / "b", moved(stage(tmp_path / "b", **taught), bundle))
    assert "teacher_correlation" in report_of(distilled)["student"]
    own = {**taught, "task": "self-supervised", "data": {}, "recipe": {"losses": [{"kind": "ntxent"}, {"kind": "rkd"}]}}
    report = report_of(finished(tmp_path / "c", moved(stage(tmp_path / "c", **own), bundle)))
    assert PROBES | {"view_loss"} <= report["teacher"].keys()


def moved(assignment: Assignment, bundle: Path) -> Assignment:
    """The same with the model in the folder of the job."""
    return assignment.model_copy(update={"inputs": {**assignment.inputs, "old": str(bundle)}})
