"""Classifiers whose classes are put in another order, or partly left out."""

from __future__ import annotations

import pytest
import torch

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
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from tests.worker.students import builders
from worker.students.model import Model
from worker.teachers import head_of
from worker.teachers.class_alignment import take_classes

ZOO: list[Network] = [
    Mlp(hidden=[]),
    Mlp(hidden=[5, 5]),
    CifarResNet(depth=8),
    WideResNet(depth=10),
    CifarVgg(depth=8, width=4),
    MobileNetV2(multiplier=0.1),
    ShuffleNetV2(size="0.5x"),
    Vit(width=8, depth=1, heads=2),
]
PLACES = [3, 0, 4]
NAMES = ["d", "a", "e"]


def require_moved(model: Model) -> None:
    """After the change the model returns the same outputs in other columns."""
    samples = builders.samples(model.config)
    with torch.no_grad():
        before, head = model(samples), head_of(model)
        take_classes(model, PLACES, NAMES)
        torch.testing.assert_close(model(samples), before[:, PLACES])
    assert head is not None
    moved = head_of(model)
    assert moved is not None
    assert torch.equal(moved, head[PLACES])
    assert (model.config.classes, model.config.class_names, model.config.outputs) == (3, NAMES, 3)


@pytest.mark.parametrize("network", ZOO, ids=lambda network: f"{network.architecture}-{len(repr(network))}")
def test_classes_of_the_zoo_are_reordered(network: Network) -> None:
    torch.manual_seed(0)
    scale = Preprocessing(scale=1 / 255, mean=[0.5] * 3, std=[0.3] * 3)
    image = ImageInput(channels=3, height=32, width=32)
    require_moved(Model(ModelConfig(architecture=network, input=image, preprocessing=scale, classes=5)).eval())


@pytest.mark.parametrize("classes", [5, 16])
@pytest.mark.parametrize("model_type", [*builders.IMAGE_NETWORKS, *builders.TEXT_NETWORKS])
def test_classes_of_the_library_are_reordered_also_where_layers_are_as_wide(model_type: str, classes: int) -> None:
    torch.manual_seed(0)
    require_moved(Model(builders.described(builders.network(model_type), classes)).eval())


def test_the_order_that_there_is_changes_no_weight() -> None:
    model = builders.model("bert")
    head = head_of(model)
    take_classes(model, range(5), ["a", "b", "c", "d", "e"])
    assert head is not None
    moved = head_of(model)
    assert moved is not None
    assert moved.data_ptr() == head.data_ptr()
    assert model.config.class_names == ["a", "b", "c", "d", "e"]
