"""Heads: their equation and gradients, and every network with each through training, export and reuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.recipe.cost import student_cost
from app.recipe.job import JobSpec
from app.recipe.students.architectures import (
    CifarResNet,
    CifarVgg,
    Mlp,
    MobileNetV2,
    Network,
    ShuffleNetV2,
    Vit,
    WideResNet,
)
from app.recipe.students.derived import network_of
from app.recipe.students.heads import HEADS, Head, HeadSpec, LinearHead, NbDiagHead, NormalisedHead, SvmHead, VqLogits
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from tests.worker.training.builders import finished, require_same_bits, stage
from worker.students import heads
from worker.students.heads.normalised import CosineHead
from worker.students.measure import network_cost
from worker.students.model import Model, last_layer
from worker.students.shrink import inherit
from worker.students.start import start
from worker.students.weights import load_model, save_model
from worker.teachers.class_alignment import take_classes

WIDTH, CLASSES = 6, 5
IMAGE = ImageInput(channels=1, height=8, width=8)
KINDS: list[HeadSpec] = [NormalisedHead(), NormalisedHead(scale=16.0, learned=False), SvmHead(), NbDiagHead()]
every_head = pytest.mark.parametrize("head", KINDS, ids=["learned", "fixed", "svm", "nb-diag"])


def networks(head: Head) -> list[Network]:
    return [
        Mlp(hidden=[WIDTH], head=head),
        CifarResNet(depth=8, width=2, head=head),
        WideResNet(depth=10, head=head),
        CifarVgg(width=2, head=head),
        MobileNetV2(multiplier=0.1, head=head),
        ShuffleNetV2(size="0.5x", head=head),
        Vit(patch_size=4, width=8, depth=1, heads=2, head=head),
    ]


def described(network: Network, classes: int = CLASSES) -> ModelConfig:
    preprocessing = Preprocessing(mean=[0.5], std=[2.0])
    return ModelConfig(architecture=network, input=IMAGE, preprocessing=preprocessing, classes=classes)


def model(network: Network, classes: int = CLASSES) -> Model:
    torch.manual_seed(0)
    made = Model(described(network, classes)).eval()
    head = last_layer(made)
    if isinstance(head, CosineHead) and head.log_ratio is not None:
        nn.init.constant_(head.log_ratio, 0.25)
    return made


def cosine_head(**settings: Any) -> CosineHead:
    torch.manual_seed(0)
    made = heads.HEADS.build(NormalisedHead(**settings), WIDTH, CLASSES).double()
    assert isinstance(made, CosineHead)
    return made


def test_every_kind_has_a_builder() -> None:
    assert heads.HEADS.kinds == set(HEADS) == {LinearHead, VqLogits, *(type(head) for head in KINDS)}


def test_a_linear_head_is_left_out_of_descriptions() -> None:
    assert "head" not in Mlp().model_dump()
    assert "head" not in described(Mlp()).model_dump_json()


def test_outputs_are_cosines_times_the_scale() -> None:
    head, features = cosine_head(scale=7.0), torch.randn(4, WIDTH, dtype=torch.float64)
    expected = F.cosine_similarity(features.unsqueeze(1), head.weight.unsqueeze(0), dim=-1)
    torch.testing.assert_close(head(features), 7.0 * expected)
    torch.testing.assert_close(head(3.0 * features), head(features))


def test_gradients_are_those_of_the_values_and_orthogonal_to_the_features() -> None:
    head, features = cosine_head(), torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: head(x).log_softmax(-1)[:, 0], features)
    loss = F.cross_entropy(head(features), torch.tensor([0, 1, 2]))
    by_features, by_weight, by_ratio = torch.autograd.grad(loss, (features, head.weight, head.log_ratio))
    for gradient, vectors in ((by_features, features), (by_weight, head.weight)):
        dots = (gradient * vectors).sum(-1)
        torch.testing.assert_close(dots, torch.zeros_like(dots), rtol=0, atol=1e-12)
    logits = head(features)
    expected = ((logits.softmax(-1) - F.one_hot(torch.tensor([0, 1, 2]), CLASSES)) * logits).sum(-1).mean()
    torch.testing.assert_close(by_ratio.squeeze(), expected)


def test_cross_entropy_is_not_below_its_bound() -> None:
    """The vertices of a simplex reach it."""
    head = heads.HEADS.build(NormalisedHead(scale=3.0, learned=False), CLASSES, CLASSES)
    simplex = torch.eye(CLASSES) - 1.0 / CLASSES
    with torch.no_grad():
        head.weight.copy_(simplex)  # type: ignore[operator]
    bound = torch.log(1.0 + (CLASSES - 1) * torch.exp(torch.tensor(-3.0 * CLASSES / (CLASSES - 1))))
    torch.testing.assert_close(F.cross_entropy(head(simplex), torch.arange(CLASSES)), bound)
    assert F.cross_entropy(head(torch.randn(CLASSES, CLASSES)), torch.arange(CLASSES)) > bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_of_zeros_have_outputs_of_zeros_and_finite_gradients(dtype: torch.dtype) -> None:
    head = cosine_head().to(dtype)
    features = torch.zeros(2, WIDTH, dtype=dtype, requires_grad=True)
    outputs = head(features)
    assert not outputs.any()
    outputs.sum().backward()
    assert features.grad is not None
    assert not features.grad.isnan().any()
    assert head.weight.grad is not None
    assert head.weight.grad.isfinite().all()


@every_head
@pytest.mark.parametrize("number", range(7))
def test_costs_from_the_description_are_those_of_the_built_network(head: Head, number: int) -> None:
    network = networks(head)[number]
    counted, built = student_cost(network, IMAGE, CLASSES), network_cost(described(network))
    assert counted is not None
    for name in ("parameters", "flops", "hidden_weights"):
        assert getattr(counted, name) == getattr(built, name), name


@every_head
@pytest.mark.parametrize("number", range(7))
def test_a_stored_model_is_read_again(head: Head, number: int, tmp_path: Path) -> None:
    made, images = model(networks(head)[number]), torch.rand(3, 1, 8, 8)
    save_model(made, tmp_path)
    read = load_model(tmp_path).eval()
    assert read.config == made.config
    torch.testing.assert_close(read.state_dict(), made.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(read(images), made(images))  # convolutions may differ by where weights lie in memory


@every_head
def test_classes_are_selected_by_rows(head: Head) -> None:
    made, images = model(Mlp(hidden=[WIDTH], head=head)), torch.rand(3, 1, 8, 8)
    before = made(images)
    take_classes(made, [3, 0, 1], ["a", "b", "c"])
    torch.testing.assert_close(made(images), before[:, [3, 0, 1]])


@every_head
@pytest.mark.parametrize("classes", [CLASSES, 3])
def test_a_stored_model_is_trained_further(head: Head, classes: int, tmp_path: Path) -> None:
    """With other classes all of the last layer is fresh."""
    stored, images = model(CifarResNet(depth=8, width=2, head=head)), torch.rand(3, 1, 8, 8)
    save_model(stored, tmp_path)
    document = {"architecture": "pretrained", "model": "m"}
    recipe = {"losses": [{"kind": "cross-entropy"}]}
    job = JobSpec.model_validate({"data": {"train": "d"}, "student": document, "recipe": recipe})
    torch.manual_seed(1)
    fresh = Model(described(stored.config.architecture, classes))
    torch.manual_seed(1)
    student = start(Model(fresh.config), job, {"m": tmp_path}, print).eval()
    if classes == CLASSES:
        torch.testing.assert_close(student(images), stored(images), rtol=0, atol=0)
        return
    ours, first = student.network.state_dict(), fresh.network.state_dict()
    assert all(torch.equal(ours[name], first[name]) for name in ours if name.startswith("head."))
    assert torch.equal(ours["conv.weight"], stored.network.state_dict()["conv.weight"])


@every_head
def test_a_derived_teacher_hands_on_its_head(head: Head) -> None:
    teacher = model(CifarResNet(depth=14, width=4, head=head))
    recipe = {"losses": [{"kind": "kd"}]}
    document = {"architecture": "shrink", "layers": 1}
    job = JobSpec.model_validate(
        {"data": {"train": "d"}, "teacher": {"model": "t"}, "student": document, "recipe": recipe}
    )
    network = network_of(job, {"t": teacher.config})
    assert isinstance(network, CifarResNet)
    assert network.head == head
    student = inherit(Model(described(network)), job, {"teacher": teacher})
    ours, theirs = student.network.state_dict(), teacher.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("head."))


@every_head
def test_a_job_is_exported_to_every_format_and_resumed_to_the_same_bits(head: Head, tmp_path: Path) -> None:
    student = {"architecture": "mlp", "hidden": [8], "head": head.model_dump()}
    formats = ["safetensors", "onnx", "onnx-int8", "torch-export"]
    losses = [{"kind": "l2-svm"}] if isinstance(head, SvmHead) else [{"kind": "cross-entropy"}, {"kind": "nkd"}]
    recipe = {"losses": losses, "optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1}}
    settings = {"student": student, "teacher": not isinstance(head, SvmHead), "recipe": recipe}
    bundle = finished(tmp_path / "all", stage(tmp_path / "all", export=formats, **settings))
    report = json.loads((bundle / "report.json").read_text())
    assert report["student"]["parameters"] == sum(each.numel() for each in load_model(bundle).network.parameters())
    assert report["student"]["flops"] > 0
    assert {"model.onnx", "model.pt2", "model.safetensors"} <= {path.name for path in bundle.iterdir()}
    require_same_bits(lambda folder: stage(folder, **settings), tmp_path)
