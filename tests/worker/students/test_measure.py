"""Costs that the worker measures equal those that the service computes."""

from __future__ import annotations

import pytest
import torch

from app.recipe.cost import student_cost
from app.recipe.students.architectures import (
    ZOO,
    CifarResNet,
    CifarVgg,
    Mlp,
    MobileNetV2,
    Network,
    ShuffleNetV2,
    TextTransformer,
    Vit,
    WideResNet,
)
from app.recipe.students.layers import (
    GroupNorm,
    LayerNorm,
    LeakyRelu,
    LinearAttention,
    NoNorm,
    Relu,
    RmsNorm,
    Selu,
    Silu,
)
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.students.measure import network_cost

IMAGE = ImageInput(channels=2, height=12, width=8)
NETWORKS: list[Network] = [
    Mlp(),
    Mlp(hidden=[8, 8], activation=Selu()),
    CifarResNet(depth=8),
    CifarResNet(depth=8, norm=NoNorm(), activation=LeakyRelu()),
    WideResNet(depth=10, norm=GroupNorm(), activation=Silu()),
    CifarVgg(width=8, norm=LayerNorm()),
    MobileNetV2(multiplier=0.25, norm=RmsNorm()),
    ShuffleNetV2(size="0.5x", norm=RmsNorm()),
    Vit(width=16, depth=2),
    Vit(width=16, depth=2, norm=RmsNorm(), attention=LinearAttention(), activation=Relu()),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.architecture)
def test_what_is_measured_is_what_the_contract_counts(network: Network) -> None:
    given = Preprocessing(mean=[0.0] * 2, std=[1.0] * 2)
    config = ModelConfig(architecture=network, input=IMAGE, preprocessing=given, classes=7)
    drawn = torch.random.get_rng_state()
    measured, counted = network_cost(config), student_cost(network, IMAGE, 7)
    assert counted is not None
    assert (measured.parameters, measured.flops) == (counted.parameters, counted.flops)
    assert measured.hidden_weights == counted.hidden_weights
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_every_network_of_the_zoo_is_measured() -> None:
    assert {type(network) for network in NETWORKS} == set(ZOO) - {TextTransformer}
