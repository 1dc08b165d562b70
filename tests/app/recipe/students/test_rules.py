"""Layers that do not fit a network or its use in a job."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import Archive, ArrayFacts
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.architectures import TextTransformer
from app.recipe.students.layers import PowerNorm
from app.recipe.students.model import ModelConfig
from app.recipe.students.rules import architecture_problems

DATA: Archive = {"x": ArrayFacts((100, 8, 8), "u1"), "y": ArrayFacts((100,), "i8")}
RESNET: dict[str, Any] = {"architecture": "cifar-resnet", "depth": 20}


def problems(student: dict[str, Any], teacher: dict[str, Any] | None = None, **recipe: Any) -> list[Problem]:
    losses = [{"kind": "kd" if teacher else "cross-entropy"}]
    document: dict[str, Any] = {
        "data": {"train": "file_a"},
        "student": student,
        "recipe": {"losses": losses, **recipe},
    }
    stored = {}
    if teacher is not None:
        document["teacher"] = {"model": "model_a"}
        image = {"channels": 1, "height": 8, "width": 8}
        config = {"architecture": teacher, "input": image, "preprocessing": {"mean": [0.0], "std": [1.0]}}
        stored["model_a"] = ModelConfig.model_validate({**config, "classes": 10})
    return list(find_problems(JobSpec.model_validate(document), InputFacts(train=DATA, teachers=stored)))


def group(groups: int, kind: str = "group") -> dict[str, Any]:
    return {"norm": {"kind": kind, "groups": groups}}


@pytest.mark.parametrize(
    ("student", "accepted"),
    [
        ({**RESNET, "width": 12, **group(8)}, "a divisor of 12"),
        ({"architecture": "wide-resnet", **group(32)}, "a divisor of 16"),
        ({"architecture": "cifar-vgg", "width": 6, **group(4)}, "a divisor of 6"),
        ({"architecture": "mobilenet-v2", **group(8)}, "a divisor of 4"),
        ({"architecture": "shufflenet-v2", **group(8)}, "a divisor of 2"),
        ({"architecture": "vit", "width": 12, **group(8, "power")}, "a divisor of 12"),
    ],
    ids=lambda value: value["architecture"] if isinstance(value, dict) else None,
)
def test_groups_must_divide_the_channels_of_every_layer(student: dict[str, Any], accepted: str) -> None:
    [problem] = problems(student)
    assert problem.param == "student.norm.groups"
    assert problem.accepted == accepted
    divisor = int(accepted.rpartition(" ")[2])
    assert not problems({**student, **group(divisor, student["norm"]["kind"])})


def test_groups_must_divide_the_width_of_a_network_of_texts_too() -> None:
    network = TextTransformer(width=12, heads=2, norm=PowerNorm(groups=8))
    [problem] = architecture_problems(network, None, "student")
    assert (problem.param, problem.accepted) == ("student.norm.groups", "a divisor of 12")
    assert not list(architecture_problems(network.model_copy(update={"norm": PowerNorm(groups=4)}), None, "student"))


def test_a_narrower_copy_of_a_grouped_teacher_must_be_divided_too() -> None:
    teacher = {**RESNET, "width": 16, **group(8)}
    [problem] = problems({"architecture": "shrink", "width": 12}, teacher)
    assert problem.param == "student.width"
    assert not problems({"architecture": "shrink", "width": 8}, teacher)


def test_without_norms_a_residual_network_is_not_as_deep_as_those_that_did_not_train() -> None:
    without = {**RESNET, "norm": {"kind": "none"}}
    [problem] = problems({**without, "depth": 110})
    assert problem.param == "student.norm.kind"
    assert problem.accepted == "another norm, or a depth of at most 56"
    assert not problems({**without, "depth": 56})
    assert not problems({**RESNET, "depth": 110, "norm": {"kind": "group"}})


def test_a_mobile_network_does_not_train_without_norms() -> None:
    [problem] = problems({"architecture": "mobilenet-v2", "norm": {"kind": "none"}})
    assert (problem.param, problem.accepted) == ("student.norm.kind", "another norm")


def test_attention_on_a_grid_is_refused_for_sizes_that_it_is_not_for() -> None:
    vit: dict[str, Any] = {"architecture": "vit", "patch_size": 4}
    [problem] = problems({**vit, "attention": {"kind": "soft", "ratio": 4}})
    assert (problem.param, problem.accepted) == ("student.attention.ratio", "a divisor of 2 x 2")
    assert not problems({**vit, "attention": {"kind": "soft"}})
    [problem] = problems({**vit, "width": 12, "heads": 2, "attention": {"kind": "nala"}})
    assert problem.param == "student.attention.kind"
    assert "a head has the size 6" in problem.message


@pytest.mark.parametrize("kind", ["soft", "nala"])
def test_attention_on_a_grid_is_refused_where_patches_are_masked(kind: str) -> None:
    student = {"architecture": "vit", "patch_size": 2, "attention": {"kind": kind}}
    document = {"task": "self-supervised", "data": {"train": "file_a"}, "student": student}
    job = JobSpec.model_validate({**document, "recipe": {"method": {"kind": "hpm"}}})
    assert "student.attention.kind" in [each.param for each in find_problems(job, InputFacts(train=DATA))]


def test_nap_needs_norms() -> None:
    nap = {"kind": "nap", "inner": {"kind": "sgd", "lr": 0.1}}
    [problem] = problems({**RESNET, "norm": {"kind": "none"}}, optimizer=nap)
    assert problem.param == "recipe.optimizer.kind"
    assert not problems({**RESNET, "norm": {"kind": "layer"}}, optimizer=nap)


@pytest.mark.parametrize("kind", ["power", "unified"])
def test_a_gradient_that_is_an_approximation_is_not_differentiated_again(kind: str) -> None:
    student = {"architecture": "vit", "norm": {"kind": kind}}
    teacher = {"architecture": "mlp"}
    [problem] = problems(student, teacher, method={"kind": "meta"})
    assert problem.param == "student.norm.kind"
    assert "layer" in problem.accepted
    assert not problems(student, teacher, method={"kind": "meta", "order": "finite-difference"})
