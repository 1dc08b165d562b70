"""Quantised students in jobs that they do not fit."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import Archive, ArrayFacts
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.model import ModelConfig

DATA: Archive = {"x": ArrayFacts((100, 8, 8), "u1"), "y": ArrayFacts((100,), "i8")}
QAT = {"kind": "qat"}
MLP: dict[str, Any] = {"architecture": "mlp", "quantise": QAT}


def problems(document: dict[str, Any], stored: dict[str, Any] | None = None) -> list[Problem]:
    recipe = {"losses": [{"kind": "cross-entropy"}], **document.pop("recipe", {})}
    models = {}
    if stored is not None:
        image = {"channels": 1, "height": 8, "width": 8}
        config = {"architecture": stored, "input": image, "preprocessing": {"mean": [0.0], "std": [1.0]}}
        models["model_a"] = ModelConfig.model_validate({**config, "classes": 10})
    base = {"data": {"train": "file_a"}, "student": MLP, "recipe": recipe}
    job = JobSpec.model_validate({**base, **document})
    return find_problems(job, InputFacts(train=DATA, teachers=models))


@pytest.mark.parametrize("architecture", ["mlp", "cifar-resnet", "wide-resnet", "cifar-vgg", "mobilenet-v2", "vit"])
def test_networks_of_this_project_can_be_quantised(architecture: str) -> None:
    student = {"architecture": architecture, "quantise": QAT}
    assert not problems({"student": student, "export": ["safetensors", "onnx", "torch-export"]})


@pytest.mark.parametrize(
    ("document", "param", "accepted"),
    [
        ({"recipe": {"method": {"kind": "mutual"}}}, "recipe.method.kind", "supervised"),
        ({"recipe": {"compile": True}}, "recipe.compile", "false"),
        ({"resources": {"processes": 2, "queue": "cpu"}}, "resources.processes", "1"),
        ({"export": ["safetensors", "onnx", "onnx-int8"]}, "export", "onnx"),
        ({"student": {**MLP, "head": {"kind": "normalised"}}}, "student.head.kind", "linear or svm, or quantise: null"),
    ],
)
def test_what_a_quantised_student_does_not_support_is_named(
    document: dict[str, Any], param: str, accepted: str
) -> None:
    assert [(each.param, each.accepted) for each in problems(document)] == [(param, accepted)]


SHIFT: dict[str, Any] = {"kind": "shift-quant", "bits": 4}


@pytest.mark.parametrize(
    ("document", "param", "accepted"),
    [
        ({"student": {"architecture": "vit", "quantise": SHIFT}}, "student.architecture", "mlp, or quantise: qat"),
        (
            {"student": {"architecture": "mlp", "hidden": [9000], "quantise": {**SHIFT, "bits": 8, "groups": 8}}},
            "student.quantise.groups",
            "less, or fewer bits: sums are below 2^31",
        ),
        ({"export": ["safetensors", "integer"]}, "export", "other formats"),
        ({"student": {"architecture": "mlp"}, "export": ["safetensors", "integer"]}, "export", "other formats"),
    ],
)
def test_integers_are_for_chains_of_layers_whose_sums_fit(document: dict[str, Any], param: str, accepted: str) -> None:
    assert [(each.param, each.accepted) for each in problems(document)] == [(param, accepted)]


BINARY: dict[str, Any] = {"architecture": "mlp", "hidden": [8, 8], "quantise": {"kind": "binary"}}


@pytest.mark.parametrize(
    ("document", "param", "accepted"),
    [
        (
            {"student": {"architecture": "cifar-vgg", "quantise": {"kind": "binary"}}},
            "student.architecture",
            "mlp, or another student.quantise",
        ),
        ({"student": {**BINARY, "hidden": [8]}}, "student.hidden", "two hidden layers or more"),
        ({"student": BINARY, "evaluation": {"keep": "best"}}, "evaluation.keep", "last"),
        ({"student": BINARY, "export": ["safetensors", "integer"]}, "export", "other formats"),
    ],
)
def test_spiking_networks_are_of_linear_layers_and_relu(document: dict[str, Any], param: str, accepted: str) -> None:
    assert [(each.param, each.accepted) for each in problems(document)] == [(param, accepted)]


def test_only_the_student_can_be_quantised() -> None:
    method = {"kind": "mutual", "architectures": [MLP]}
    found = problems({"student": {"architecture": "mlp"}, "recipe": {"method": method}})
    assert [each.param for each in found] == ["recipe.method.architectures[0].quantise"]


def test_a_quantised_model_can_be_trained_further_and_teach_but_not_be_trained_as_a_teacher() -> None:
    started = {"student": {"architecture": "pretrained", "model": "model_a"}}
    assert not problems(started, MLP)
    assert [each.param for each in problems({**started, "recipe": {"compile": True}}, MLP)] == ["recipe.compile"]
    taught: dict[str, Any] = {"student": {"architecture": "mlp"}, "teacher": {"model": "model_a"}}
    losses = [{"kind": "cross-entropy"}, {"kind": "kd"}]
    assert not problems({**taught, "recipe": {"losses": losses}}, MLP)
    online = {"losses": losses, "method": {"kind": "online"}}
    assert [each.param for each in problems({**taught, "recipe": online}, MLP)] == ["teacher.model"]
