"""Classifiers whose last layer is a codebook: clusters, jobs, files, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.recipe.checks import InputFacts, find_problems
from app.recipe.cost import student_cost
from app.recipe.job import JobSpec
from app.recipe.students.architectures import CifarResNet, Mlp, Shrink, Transformers, Vit
from app.recipe.students.heads import NormalisedHead, VqLogits
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from app.recipe.students.shrink import Unshrinkable, shrunk
from tests.worker.distributed.ranks_stage import Act, play_together
from tests.worker.training.builders import CLASSES, SIDE, finished, play, require_same_bits, stage, write_teacher
from worker.protocol import Assignment, Failed, Finished
from worker.students.measure import network_cost
from worker.students.model import Model, last_layer
from worker.students.weights import WEIGHTS, InvalidModel, load_model
from worker.teachers.class_alignment import take_classes

CODES = 3
HEAD = {"kind": "vq-logits", "codes": CODES}
STUDENT = {"architecture": "mlp", "hidden": [8], "head": HEAD}
DISTILLED: list[dict[str, Any]] = [{"kind": "cross-entropy"}, {"kind": "kd", "temperature": 2.0}]
STILL = {"optimizer": {"kind": "sgd", "lr": 1e-30, "momentum": 0.0}, "epochs": 1, "max_steps": 1}
IMAGE = ImageInput(channels=1, height=SIDE, width=SIDE)


def coded(folder: Path, student: dict[str, Any] = STUDENT, teacher: Any = None, **changes: Any) -> Assignment:
    """A job with a student with a codebook."""
    recipe = {"losses": DISTILLED, **changes.pop("recipe", {})}
    assignment = stage(folder, student=student, teacher=True, recipe=recipe, **changes)
    if teacher is not None:
        write_teacher(folder / "teacher", teacher)
    return assignment


def described(network: Any, classes: int = CLASSES) -> ModelConfig:
    scaled = Preprocessing(mean=[0.5], std=[0.3])
    return ModelConfig(architecture=network, input=IMAGE, preprocessing=scaled, classes=classes)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coded")
    formats = ["safetensors", "onnx", "onnx-int8", "torch-export"]
    return finished(folder, coded(folder, recipe={"epochs": 20}, export=formats))


@pytest.mark.parametrize("teacher", [Mlp(hidden=[12]), Mlp(hidden=[8]), Vit(patch_size=3, width=8, depth=1, heads=2)])
@pytest.mark.parametrize("head", [None, NormalisedHead()])
def test_the_codes_are_clusters_of_the_teachers_last_layer(tmp_path: Path, teacher: Any, head: Any) -> None:
    network = teacher if head is None else teacher.model_copy(update={"head": head})
    model = load_model(finished(tmp_path, coded(tmp_path, teacher=network, recipe=STILL)))
    layer, taught = model.codebook, last_layer(load_model(tmp_path / "teacher"))
    assert layer is not None
    assert taught is not None
    rows = taught.weight.detach()
    means = torch.stack([rows[layer.codes == code].mean(0) for code in layer.codes.unique()])
    assert torch.equal(layer.codes.unique()[torch.cdist(rows, means).argmin(1)], layer.codes)
    assert len(layer.codes.unique()) == CODES
    if rows.shape[1] == layer.weight.shape[1]:
        torch.testing.assert_close(layer.weight.detach()[layer.codes.unique()], means)


def test_every_file_gives_the_same_logits_and_has_the_codebook(bundle: Path) -> None:
    model, session = load_model(bundle), onnxruntime.InferenceSession(bundle / "model.onnx")
    program = torch.export.load(bundle / "model.pt2").module()
    images = np.random.default_rng(0).uniform(0, 255, (5, 1, SIDE, SIDE)).astype(np.float32)
    expected = model(torch.from_numpy(images))
    (found,) = session.run(["logits"], {"images": images})
    assert found.shape == (5, CLASSES)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(program(torch.from_numpy(images)), expected, rtol=0.0, atol=1e-5)
    assert (found.argmax(-1) == expected.argmax(-1).numpy()).all()
    stored = load_file(bundle / WEIGHTS)
    (weight,) = (tensor for name, tensor in stored.items() if tensor.shape == (CODES, 8))
    (codes,) = (tensor for tensor in stored.values() if tensor.dtype == torch.int64)
    assert model.codebook is not None
    assert torch.equal(weight, model.codebook.weight)
    assert torch.equal(codes, model.codebook.codes)
    assert all(torch.equal(row, expected[:, codes == code][:, :1]) for code, row in _by_code(expected, codes))


def _by_code(logits: torch.Tensor, codes: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    return [(int(code), logits[:, [place]]) for place, code in enumerate(codes)]


def test_the_report_has_the_size_of_the_head_and_what_it_can_not_learn(bundle: Path) -> None:
    report, model = json.loads((bundle / "report.json").read_text()), load_model(bundle)
    figures = report["codebook"]
    assert (figures["codes"], figures["codes_in_use"], figures["full_bytes"]) == (CODES, CODES, 4 * CLASSES * 8)
    assert figures["bytes"] == 4 * CODES * 8 + 4 * CLASSES
    assert figures["entropy_within_codes"] > 0.0
    assert 0.0 < figures["least_kl"] < report["student"]["kl"]
    assert report["student"]["parameters"] == network_cost(model.config).parameters
    assert 0.5 < figures["highest_accuracy"] < 1.0
    assert report["student"]["accuracy"] <= figures["highest_accuracy"]


def test_of_the_classes_of_a_code_only_the_first_is_chosen(bundle: Path) -> None:
    model = load_model(bundle)
    assert model.codebook is not None
    codes = model.codebook.codes.tolist()
    chosen = set(model(torch.rand(64, 1, SIDE, SIDE) * 255).argmax(-1).tolist())
    assert chosen <= {codes.index(code) for code in codes}


@pytest.mark.parametrize("recipe", [{}, {"ema_decay": 0.9, "accumulate": 2}, {"precision": "bf16"}])
def test_a_student_with_a_codebook_resumes_to_the_same_bits(tmp_path: Path, recipe: dict[str, Any]) -> None:
    augment = [{"kind": "mixup"}]
    require_same_bits(partial(coded, recipe=recipe, data={"train": "data", "augment": augment}), tmp_path)


def test_training_over_codes_is_training_over_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the logits of all classes in every step."""
    recipe = {"optimizer": {"kind": "sgd", "lr": 0.05}, "epochs": 4}
    ours = load_file(finished(tmp_path / "ours", coded(tmp_path / "ours", recipe=recipe)) / WEIGHTS)
    monkeypatch.setattr("worker.training.compiled._forward", lambda student: student)
    monkeypatch.setattr("worker.losses.CODED", {})
    plain = load_file(finished(tmp_path / "plain", coded(tmp_path / "plain", recipe=recipe)) / WEIGHTS)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, sharding: str) -> None:
    recipe = {"batch_size": 10, "accumulate": 2, "ema_decay": 0.8, "optimizer": {"kind": "sgd", "lr": 0.05}}
    more = {"recipe": recipe, "teacher_cache": {"store": "off"}}
    one = load_file(finished(tmp_path / "one", coded(tmp_path / "one", **more)) / WEIGHTS)
    resources = {"processes": 2, "queue": "cpu", "sharding": sharding}
    act = Act(coded(tmp_path / "two", resources=resources, **more), tmp_path / "two")
    word = play_together({"two": act})["two"].word
    assert isinstance(word, Finished), word
    two = load_file(tmp_path / "two" / "bundle" / WEIGHTS)
    for name, each in one.items():
        torch.testing.assert_close(two[name], each, rtol=1e-4, atol=1e-5, msg=name)


def test_losses_on_features_go_with_a_codebook(tmp_path: Path) -> None:
    hint = {"kind": "hint", "pairs": [{"teacher": "1", "student": "1"}]}
    finished(tmp_path, coded(tmp_path, recipe={"losses": [*DISTILLED, hint], "epochs": 1}))


def test_a_student_with_a_codebook_can_teach_and_be_trained_further(tmp_path: Path, bundle: Path) -> None:
    def beside(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        assignment = stage(folder, **changes)
        (folder / "begins").symlink_to(bundle)
        inputs = {**assignment.inputs, "begins": "begins"}
        return finished(folder, assignment.model_copy(update={"inputs": inputs}))

    every = [{"kind": "cross-entropy"}, {"kind": "nkd"}, {"kind": "kd"}]
    beside("taught", teachers=[{"model": "begins"}], recipe={"losses": every, "epochs": 1})
    further = {"architecture": "pretrained", "model": "begins"}
    again = beside("further", student=further, teacher=True, recipe={"losses": DISTILLED, **STILL})
    before, after = (load_model(each).network.state_dict() for each in (bundle, again))
    torch.testing.assert_close(after, before)


def test_diagnostics_read_the_features_of_a_codebook(tmp_path: Path) -> None:
    asked = [{"kind": "mahalanobis"}, {"kind": "loss-landscape"}, {"kind": "robustness"}]
    data = {"train": "data", "eval_fraction": 0.5}
    bundle = finished(tmp_path, coded(tmp_path, data=data, evaluation={"diagnostics": asked}))
    report = json.loads((bundle / "report.json").read_text())
    assert set(report["diagnostics"]) == {"mahalanobis", "loss-landscape", "robustness"}
    assert not any("no last linear layer" in warning["message"] for warning in report["warnings"])


def test_classes_are_selected_by_their_codes(bundle: Path) -> None:
    model, images = load_model(bundle), torch.rand(3, 1, SIDE, SIDE) * 255
    before = model(images)
    take_classes(model, [3, 0, 1], ["a", "b", "c"])
    torch.testing.assert_close(model(images), before[:, [3, 0, 1]])


def test_a_student_that_starts_from_other_classes_gets_new_codes(tmp_path: Path, bundle: Path) -> None:
    assignment = stage(
        tmp_path,
        data={"train": "binary"},
        student={"architecture": "pretrained", "model": "begins"},
        teacher=True,
        recipe={"losses": DISTILLED},
    )
    write_teacher(tmp_path / "teacher", classes=2)
    (tmp_path / "begins").symlink_to(bundle)
    inputs = {**assignment.inputs, "begins": "begins"}
    word = play(assignment.model_copy(update={"inputs": inputs}), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "student.head.codes")


def test_files_that_are_no_codebook_are_refused(tmp_path: Path, bundle: Path) -> None:
    weights = load_file(bundle / WEIGHTS)
    (name,) = (name for name in weights if name.endswith("codes"))
    for change in (CODES, -CODES):
        folder = tmp_path / str(change)
        folder.mkdir()
        for path in bundle.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
        save_file({**weights, name: weights[name] + change}, folder / WEIGHTS)
        with pytest.raises(InvalidModel, match=f"codes has a number that is not from 0 to {CODES - 1}"):
            load_model(folder)


@pytest.mark.parametrize(
    "network",
    [
        Mlp(hidden=[6], head=VqLogits(codes=3)),
        CifarResNet(depth=8, width=2, head=VqLogits(codes=3)),
        Vit(patch_size=3, width=8, depth=1, heads=2, head=VqLogits(codes=3)),
    ],
)
def test_costs_from_the_description_are_those_of_the_built_network(network: Any) -> None:
    counted, built = student_cost(network, IMAGE, CLASSES), network_cost(described(network))
    assert counted is not None
    for name in ("parameters", "flops", "hidden_weights"):
        assert getattr(counted, name) == getattr(built, name), name


def test_a_codebook_has_fewer_codes_than_classes(tmp_path: Path) -> None:
    student = {**STUDENT, "head": {**HEAD, "codes": CLASSES}}
    word = play(coded(tmp_path, student), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "student.head.codes")
    assert "at most 3" in word.message


def refusals(student: dict[str, Any], losses: list[dict[str, Any]], **changes: Any) -> dict[str, str]:
    document: dict[str, Any] = {
        "data": {"train": "data"},
        "student": student,
        "teacher": {"model": "model_1"},
        "recipe": {"losses": losses, "epochs": 1, **changes.pop("recipe", {})},
        **changes,
    }
    known = InputFacts(teachers={"model_1": described(Mlp(hidden=[12]))})
    problems = find_problems(JobSpec.model_validate(document), known)
    return {str(problem.param): problem.message for problem in problems}


@pytest.mark.parametrize(
    ("loss", "param"),
    [
        ({"kind": "nkd"}, "recipe.losses[1].kind"),
        ({"kind": "uskd", "feature": "1"}, "recipe.losses[1].kind"),
        ({"kind": "rkd"}, "recipe.losses[1].kind"),
        ({"kind": "kd", "standardize": True}, "recipe.losses[1].standardize"),
        ({"kind": "cross-entropy", "label_smoothing": 0.1}, "recipe.losses[1].label_smoothing"),
    ],
)
def test_losses_that_need_the_logits_of_all_classes_are_refused(loss: dict[str, Any], param: str) -> None:
    losses = [{"kind": "cross-entropy"}, loss]
    assert param not in refusals({"architecture": "mlp"}, losses)
    assert param in refusals(STUDENT, losses)


def test_what_does_not_go_with_a_codebook_is_refused_by_name() -> None:
    assert refusals(STUDENT, DISTILLED) == {}
    assert "student.head.kind" in refusals(STUDENT, DISTILLED[:1], teacher=None)
    assert "recipe.method.kind" in refusals(STUDENT, DISTILLED, recipe={"method": {"kind": "mutual"}})
    normalized = {"optimizer": {"kind": "normalized-gd", "lr": 0.1}}
    assert "recipe.optimizer.kind" in refusals(STUDENT, DISTILLED, recipe=normalized)
    assert refusals({"architecture": "mlp"}, DISTILLED, recipe=normalized) == {}
    many = {**STUDENT, "head": {**HEAD, "codes": CLASSES}}
    assert refusals(many, DISTILLED)["student.head.codes"].startswith("is 4, and there are 4 classes")
    table = {"train": "data", "format": "csv", "input_columns": ["x"], "label_columns": ["y"]}
    wrong = refusals(STUDENT, [{"kind": "mse"}], task="regression", data=table)
    assert wrong["student.head.kind"].startswith("is vq-logits, which is not for regression")
    reader = {"architecture": "transformer", "head": HEAD}
    labelled = {"train": "data", "format": "jsonl", "input_columns": ["text"], "label_columns": ["labels"]}
    wrong = refusals(reader, [{"kind": "binary-kd"}], task="multi-label-classification", data=labelled)
    assert wrong["student.head.kind"].startswith("is vq-logits, which is not for multi-label-classification")
    bert = {"architecture": "transformers", "config": {"model_type": "bert"}, "head": HEAD}
    tagged = {"train": "data", "format": "jsonl", "input_columns": ["words"], "label_columns": ["tags"]}
    wrong = refusals(bert, DISTILLED, task="token-classification", data=tagged)
    assert wrong["student.head.kind"].startswith("is vq-logits, which is not for token-classification")


def test_a_teacher_with_a_codebook_is_not_shrunk() -> None:
    with pytest.raises(Unshrinkable, match="vq-logits"):
        shrunk(Shrink(layers=1), CifarResNet(depth=14, head=VqLogits(codes=3)))
    with pytest.raises(Unshrinkable, match="vq-logits"):
        shrunk(Shrink(layers=1), Transformers.model_validate({"config": {"model_type": "bert"}, "head": HEAD}))


def test_the_rows_of_a_codebook_are_no_last_linear_layer() -> None:
    """Not even a hidden layer with as many outputs as classes is one."""
    model = Model(described(Mlp(hidden=[CLASSES], head=VqLogits(codes=CODES))))
    assert last_layer(model) is None
