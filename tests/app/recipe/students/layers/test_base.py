"""Default layers are left out of the description of a network, as before there was a choice."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from app.recipe.students.architectures import (
    CifarResNet,
    CifarVgg,
    MobileNetV2,
    Network,
    ShuffleNetV2,
    Vit,
    WideResNet,
)
from app.recipe.students.layers import Gelu, GroupNorm, LinearAttention, Relu, RmsNorm, Silu

NETWORKS: list[Network] = [CifarResNet(), WideResNet(), CifarVgg(), MobileNetV2(), ShuffleNetV2(), Vit()]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.architecture)
def test_a_network_with_the_default_layers_is_described_as_before(network: Network) -> None:
    assert not {"norm", "activation", "attention"} & network.model_dump().keys()
    assert TypeAdapter(Network).validate_json(network.model_dump_json()) == network


def test_a_default_that_is_given_is_none() -> None:
    assert CifarResNet(activation=Relu()).model_dump() == CifarResNet().model_dump()
    assert Vit.model_validate({"architecture": "vit", "activation": {"kind": "gelu"}}).activation == Gelu()


def test_other_layers_are_written_and_read_again() -> None:
    networks: list[Network] = [
        CifarResNet(norm=GroupNorm(groups=4), activation=Silu()),
        Vit(norm=RmsNorm(), attention=LinearAttention()),
    ]
    for network in networks:
        assert TypeAdapter(Network).validate_json(network.model_dump_json()) == network
    assert networks[0].model_dump()["norm"] == {"kind": "group", "groups": 4}
    assert "activation" not in networks[1].model_dump()
