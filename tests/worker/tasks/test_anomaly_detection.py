"""Jobs of anomaly detection: what they leave behind, how far it is right, and what they refuse."""

from __future__ import annotations

import json
import math
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
from app.recipe.students.architectures import CifarResNet, Transformers, Vit
from tests.worker.training.builders import finished, play, require_same_bits, write_teacher
from worker.metrics.anomalies import auroc, per_region_overlap
from worker.protocol import Assignment, CheckpointSaved, Failed, Report
from worker.students.weights import load_model, read_config
from worker.tasks.anomaly_detection import maps_of

Document = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]
SIDE, SAMPLES, ANOMALIES = 8, 40, 12
LOSSES: list[Document] = [{"kind": "feature-reconstruction"}, {"kind": "prototype-coherence"}]
STUDENT: Document = {
    **{"architecture": "inp-former", "model": "encoder", "layers": [["blocks.0"], ["blocks.1", "blocks.2"]]},
    **{"prototypes": 2, "map_size": 8},
}
VIT = Vit(patch_size=2, width=16, depth=3, heads=2)


def images(seed: int = 0) -> Arrays:
    """One pattern in noise; the last images have a bright square, which their masks mark."""
    random = np.random.default_rng(seed)
    pattern = np.random.default_rng(0).integers(80, 140, (SIDE, SIDE))
    pixels, masks = pattern + random.integers(-10, 10, (SAMPLES, SIDE, SIDE)), np.zeros((SAMPLES, SIDE, SIDE), bool)
    for number in range(SAMPLES - ANOMALIES, SAMPLES):
        top, left = random.integers(0, SIDE - 3, 2)
        masks[number, top : top + 3, left : left + 3] = True
    pixels[masks] = 235
    return {"x": pixels.astype(np.uint8), "y": masks.any((1, 2)).astype(int), "mask": masks}


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: values for name, values in arrays.items() if name not in names}


def stage(folder: Path, train: Arrays | None = None, held: Arrays | None = None, **changes: Any) -> Assignment:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "data.npz", **(images() if train is None else train))
    write_teacher(folder / "encoder", changes.pop("encoder", VIT), side=SIDE)
    data: Document = {"train": "data", "mask_key": "mask"}
    if held is not None:
        np.savez(folder / "held.npz", **held)
        data["eval"] = "held"
    job: Document = {
        "task": "anomaly-detection",
        "data": {**data, **changes.pop("data", {})},
        "student": {**STUDENT, **changes.pop("student", {})},
        "export": ["safetensors"],
        "seed": 3,
        "recipe": {"losses": LOSSES, "epochs": 2, "batch_size": 8, **changes.pop("recipe", {})},
    }
    inputs = {"data": "data.npz", "held": "held.npz", "encoder": "encoder"}
    return Assignment(spec=JobSpec.model_validate(job | changes), inputs=inputs | changes.pop("inputs", {}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with all exports, of a moving average."""
    folder = tmp_path_factory.mktemp("anomalies") / "job"
    recipe = {"epochs": 8, "ema_decay": 0.9, "optimizer": {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.1}}
    exports = ["safetensors", "onnx", "onnx-int8", "torch-export"]
    return finished(folder, stage(folder, held=images(1), recipe=recipe, export=exports))


def report_of(bundle: Path) -> Document:
    told: Document = json.loads((bundle / "report.json").read_text())
    return told


def messages(reports: list[Report]) -> list[str]:
    return [str(getattr(report, "message", "")) for report in reports]


def refusal(assignment: Assignment, folder: Path) -> Failed:
    word = play(assignment, folder).word
    assert isinstance(word, Failed)
    assert word.fault == "user"
    return word


def pixels(arrays: Arrays) -> Tensor:
    return torch.from_numpy(arrays["x"]).unsqueeze(1)


def test_anomalies_are_found_and_the_report_has_the_figures_of_the_files(bundle: Path) -> None:
    report, held = report_of(bundle), images(1)
    student = report["student"]
    with torch.no_grad():
        outputs = load_model(bundle)(pixels(held))
    anomalous, masks = torch.from_numpy(held["y"]).bool(), torch.from_numpy(held["mask"])
    assert student["image_auroc"] > 0.95
    assert student["image_auroc"] == pytest.approx(auroc(outputs[:, 0], anomalous), abs=1e-9)
    assert student["pixel_auroc"] == pytest.approx(auroc(maps_of(outputs), masks), abs=1e-6)
    assert student["pro"] > 0.5
    assert student["pro"] == pytest.approx(per_region_overlap(maps_of(outputs), masks), abs=1e-6)
    cosine = 1.0 - float(maps_of(outputs)[~anomalous].mean())
    assert student["reconstruction_cosine"] == pytest.approx(cosine, abs=1e-5)
    counts = {"trained": SAMPLES - ANOMALIES, "left_out": ANOMALIES}
    evaluated = {"normal": SAMPLES - ANOMALIES, "anomalous": ANOMALIES}
    assert report["data"]["anomalies"] == {**counts, "evaluated": evaluated}
    assert report["samples"] == {"train": SAMPLES - ANOMALIES, "eval": SAMPLES}
    assert report["origin"] == {"encoder": "encoder", "layers": STUDENT["layers"]}
    assert report["epochs"]["by"] == "image_auroc"


def test_training_reconstructs_normal_images_better(tmp_path: Path, bundle: Path) -> None:
    recipe = {"optimizer": {"kind": "sgd", "lr": 1e-9}, "epochs": 1}
    untrained = report_of(finished(tmp_path, stage(tmp_path, held=images(1), recipe=recipe)))
    before, after = (each["student"]["reconstruction_cosine"] for each in (untrained, report_of(bundle)))
    assert after > before + 0.1


def test_every_file_works_alone_and_gives_the_same_scores(bundle: Path) -> None:
    raw = pixels(images(2))
    with torch.no_grad():
        expected = load_model(bundle)(raw)
    assert expected.shape == (SAMPLES, 65)
    (found,) = onnxruntime.InferenceSession(bundle / "model.onnx").run(["outputs"], {"images": raw.float().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.0, atol=1e-5)
    program = torch.export.load(bundle / "model.pt2").module()
    torch.testing.assert_close(program(raw.float()), expected, rtol=0.0, atol=1e-5)
    assert report_of(bundle)["student"]["onnx_int8"]["max_difference"] < 0.5
    card = (bundle / "README.md").read_text()
    assert "the score of each image, and then its map of 8 x 8 scores" in card
    assert "reconstructs the features of `encoder`, its frozen encoder" in card


def test_the_encoder_is_exported_as_it_was(bundle: Path) -> None:
    stored, student = (
        load_file(bundle.parent / "encoder" / "model.safetensors"),
        load_file(bundle / "model.safetensors"),
    )
    inside = {name.removeprefix("encoder."): values for name, values in student.items() if name.startswith("encoder.")}
    assert inside.keys() == stored.keys()
    assert all(torch.equal(values, stored[name]) for name, values in inside.items())
    config, own = read_config(bundle), read_config(bundle.parent / "encoder")
    assert config.preprocessing == own.preprocessing
    assert config.targets == 65


def test_batch_statistics_of_an_encoder_do_not_move(tmp_path: Path) -> None:
    cnn: Document = {"encoder": CifarResNet(depth=8, width=4), "student": {"layers": [["stages.1.0"]]}}
    bundle = finished(tmp_path, stage(tmp_path, **cnn, recipe={"ema_decay": 0.5}))
    stored, student = load_file(tmp_path / "encoder" / "model.safetensors"), load_file(bundle / "model.safetensors")
    assert all(torch.equal(student[f"encoder.{name}"], values) for name, values in stored.items())


def test_an_encoder_of_the_library_is_taken_and_exported_too(tmp_path: Path) -> None:
    sizes: Document = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = Transformers(config={"model_type": "vit", "patch_size": 2, **sizes})
    student = {"layers": [["vit.layers.0"], ["vit.layers.1"]]}
    bundle = finished(tmp_path, stage(tmp_path, encoder=encoder, student=student, export=["safetensors", "onnx"]))
    stored, exported = load_file(tmp_path / "encoder" / "model.safetensors"), load_model(bundle)
    inside = exported.network.encoder.state_dict()  # type: ignore[union-attr,operator]
    assert sorted(values.sum().item() for values in inside.values()) == pytest.approx(
        sorted(values.sum().item() for values in stored.values()), abs=1e-6
    )
    assert report_of(bundle)["student"]["onnx"]["image_auroc"] == report_of(bundle)["student"]["image_auroc"]


def test_no_optimizer_state_belongs_to_the_encoder(tmp_path: Path) -> None:
    saved = play(stage(tmp_path), tmp_path, steps=2).of(CheckpointSaved)[-1].path
    state = load_file(tmp_path / saved / "state.safetensors")
    moments = sum(values.numel() for name, values in state.items() if name.startswith("optimizer/") and values.ndim)
    student = {name: values for name, values in state.items() if name.startswith("student/")}
    learned = sum(values.numel() for name, values in student.items() if "encoder." not in name)
    assert 2 * learned == moments  # two moments of AdamW


def test_operations_of_training_leave_out_the_encoders_backward_pass(bundle: Path) -> None:
    report = report_of(bundle)
    steps_per_epoch = math.ceil((SAMPLES - ANOMALIES) / 8)
    assert report["train"]["steps"] == 8 * steps_per_epoch
    samples = 8 * (SAMPLES - ANOMALIES)
    assert report["train"]["flops"] == report["train"]["student_flops"]
    assert report["student"]["flops"] * samples < report["train"]["flops"] < 3 * report["student"]["flops"] * samples


def test_a_stopped_job_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    require_same_bits(partial(stage, recipe={"ema_decay": 0.9, "precision": "bf16"}), tmp_path)


def test_without_a_file_to_evaluate_on_all_anomalies_and_some_normal_images_are_held_out(tmp_path: Path) -> None:
    played = play(stage(tmp_path), tmp_path)
    report = report_of(tmp_path / "bundle")
    assert report["data"]["anomalies"] == {"trained": 22, "left_out": 0, "evaluated": {"normal": 6, "anomalous": 12}}
    assert any(
        "12 images of data.train are anomalous, and are evaluated on" in each for each in messages(played.reports)
    )


def test_anomalies_in_training_are_left_out_with_a_warning_that_counts_them(tmp_path: Path) -> None:
    mixed, clean = tmp_path / "mixed", tmp_path / "clean"
    played = play(stage(mixed, held=images(1)), mixed)
    assert any(
        "12 images of data.train are anomalous, and are left out of training" in each
        for each in messages(played.reports)
    )
    normal = {name: values[: SAMPLES - ANOMALIES] for name, values in images().items()}
    bundles = mixed / "bundle", finished(clean, stage(clean, train=normal, held=images(1)))
    one, other = (load_file(folder / "model.safetensors") for folder in bundles)
    assert all(torch.equal(values, other[name]) for name, values in one.items())


def test_images_to_train_on_need_no_labels_and_masks_are_labels(tmp_path: Path) -> None:
    normal = {"x": images()["x"][: SAMPLES - ANOMALIES]}
    folder = tmp_path / "a"
    plain = report_of(finished(folder, stage(folder, train=normal, held=images(1))))["student"]
    folder = tmp_path / "b"
    masked = report_of(finished(folder, stage(folder, train=normal, held=without(images(1), "y"))))["student"]
    same = ("image_auroc", "pixel_auroc", "pro", "reconstruction_cosine")
    assert [plain[name] for name in same] == [masked[name] for name in same]


def test_labels_without_masks_evaluate_images_alone(tmp_path: Path) -> None:
    labelled = without(images(), "mask")
    assignment = stage(tmp_path, train=labelled, data={"mask_key": None})
    student = report_of(finished(tmp_path, assignment))["student"]
    assert {"image_auroc", "reconstruction_cosine"} <= student.keys()
    assert not {"pixel_auroc", "pro"} & student.keys()


def test_without_anomalies_the_reconstruction_is_evaluated_and_the_log_says_so(tmp_path: Path) -> None:
    normal = {"x": images()["x"][: SAMPLES - ANOMALIES]}
    played = play(stage(tmp_path, train=normal, data={"mask_key": None}, evaluation={"keep": "best"}), tmp_path)
    report = report_of(tmp_path / "bundle")
    assert report["epochs"]["by"] == "reconstruction_cosine"
    assert "image_auroc" not in report["student"]
    assert any("no anomalous image" in each for each in messages(played.reports))


def test_classes_of_normal_images_are_named(tmp_path: Path) -> None:
    several = {"x": images()["x"], "y": np.where(images()["y"] == 1, 7, np.arange(SAMPLES) % 3)}
    data = {"mask_key": None, "normal_classes": ["0", "1", "2"]}
    found = report_of(finished(tmp_path, stage(tmp_path, train=several, data=data)))
    assert found["data"]["anomalies"]["evaluated"]["anomalous"] == ANOMALIES


def test_figures_and_a_picture_of_maps_are_in_the_report(tmp_path: Path) -> None:
    bundle = finished(tmp_path, stage(tmp_path, evaluation={"diagnostics": [{"kind": "anomaly-maps", "images": 6}]}))
    found = report_of(bundle)["diagnostics"]["anomaly-maps"]
    assert found["figures"]["anomalous"]["images"] == ANOMALIES
    assert len(found["table"]) == 6
    assert (bundle / found["picture"]).read_bytes()[1:4] == b"PNG"


def test_its_model_is_the_start_of_another(tmp_path: Path, bundle: Path) -> None:
    assignment = stage(tmp_path, recipe={"epochs": 1, "optimizer": {"kind": "sgd", "lr": 1e-9}})
    start = {"architecture": "pretrained", "model": "old"}
    document = {**assignment.spec.model_dump(mode="json", exclude_unset=True), "student": start}
    inputs = {**assignment.inputs, "old": str(bundle)}
    tuned = finished(tmp_path, Assignment(spec=JobSpec.model_validate(document), inputs=inputs))
    old, new = (load_file(folder / "model.safetensors") for folder in (bundle, tuned))
    assert old.keys() == new.keys()
    for name, values in old.items():
        torch.testing.assert_close(new[name], values, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "changes", "param", "told"),
    [
        ({"y": 1 - images()["y"]}, {}, "data.mask_key", "image 0 of data.train is anomalous, and its mask has no"),
        ({"mask": np.ones((SAMPLES, SIDE, SIDE), bool)}, {}, "data.mask_key", "is normal, and its mask has anomalous"),
        ({"y": images()["y"] + 1}, {"data": {"mask_key": None}}, "data.train", "none of them is called '0', 'normal'"),
        ({}, {"data": {"normal_classes": ["0", "5"]}}, "data.normal_classes", "no image has the class '5'"),
        ({}, {"data": {"normal_classes": ["1"], "mask_key": None}}, None, ""),
        ({}, {"student": {"heads": 3}}, "student.heads", "3 does not divide the width 16"),
        ({}, {"student": {"layers": [["blocks.0.norm1", "head"]]}}, "student.layers", "different shapes"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(
    tmp_path: Path, arrays: Arrays, changes: Document, param: str | None, told: str
) -> None:
    assignment = stage(tmp_path, train={**images(), **arrays}, **changes)
    if param is None:  # what is normal is a matter of the job
        finished(tmp_path, assignment)
        return
    word = refusal(assignment, tmp_path)
    assert word.param == param
    assert told in word.message


def test_without_a_normal_image_nothing_is_trained_or_evaluated(tmp_path: Path) -> None:
    anomalous = {name: values[SAMPLES - ANOMALIES :] for name, values in images().items()}
    found = refusal(
        stage(tmp_path / "a", train=anomalous, data={"normal_classes": ["0"], "mask_key": None}), tmp_path / "a"
    )
    assert found.param == "data.normal_classes"
    held = refusal(stage(tmp_path / "b", held=anomalous), tmp_path / "b")
    assert (held.param, "no normal image to evaluate on" in held.message) == ("data.eval", True)
