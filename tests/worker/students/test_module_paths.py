"""The contract's list of module paths is that of the networks as they are built."""

from __future__ import annotations

from typing import get_args

import pytest

from app.recipe.students.architectures import (
    ZOO,
    CifarResNet,
    CifarVgg,
    Mlp,
    MobileNetV2,
    Network,
    Option,
    ShuffleNetV2,
    TextTransformer,
    Vit,
    WideResNet,
)
from app.recipe.students.layers import ATTENTIONS, IMAGE_NORMS, LinearAttention, NoNorm, RmsNorm, Silu, SoftAttention
from app.recipe.students.model import ImageInput
from app.recipe.students.module_paths import module_paths, paths_of_tensors
from worker.students import build

IMAGE = ImageInput(channels=3, height=32, width=32)


def choices(student: type[Option], field: str) -> tuple[object, ...]:
    return get_args(student.model_fields[field].annotation)


NETWORKS: list[Network] = [
    Mlp(hidden=[]),
    Mlp(hidden=[8, 4]),
    *(CifarResNet(depth=depth, width=4) for depth in choices(CifarResNet, "depth")),
    *(WideResNet(depth=depth, widen=1) for depth in choices(WideResNet, "depth")),
    WideResNet(depth=10, widen=2),
    *(CifarVgg(depth=depth, width=4) for depth in choices(CifarVgg, "depth")),
    MobileNetV2(multiplier=0.1),
    MobileNetV2(multiplier=0.1, expansion=1),
    *(ShuffleNetV2(size=size) for size in choices(ShuffleNetV2, "size")),
    Vit(depth=3, width=16, heads=2),
    Vit(depth=2, width=16, heads=2, norm=RmsNorm(), attention=LinearAttention(), activation=Silu()),
    *(Vit(depth=2, width=16, heads=2, attention=attention()) for attention in ATTENTIONS),
    Vit(depth=2, width=16, heads=2, attention=SoftAttention(conv_size=0)),
    *(CifarResNet(depth=8, width=8, norm=norm(), activation=Silu()) for norm in IMAGE_NORMS),
    *(kind(norm=NoNorm(), activation=Silu()) for kind in (WideResNet, CifarVgg, MobileNetV2, ShuffleNetV2)),
]


@pytest.mark.parametrize("network", NETWORKS, ids=[f"{n.architecture}-{i}" for i, n in enumerate(NETWORKS)])
def test_paths_are_those_of_the_network(network: Network) -> None:
    built = build(network, IMAGE, 10)
    assert module_paths(network) == [name for name, _ in built.named_modules() if name]


def test_every_network_of_the_zoo_is_tried() -> None:
    assert {type(network) for network in NETWORKS} == set(ZOO) - {TextTransformer}


def test_paths_of_tensors_are_modules_of_the_network() -> None:
    built = build(CifarResNet(depth=8, width=4), IMAGE, 10)
    found = paths_of_tensors(built.state_dict())
    with_tensors = {name for name, module in built.named_modules() if name and module.state_dict()}
    assert set(found) == with_tensors
    numbers = paths_of_tensors(f"layer.{number}.weight" for number in range(11))
    assert numbers[-2:] == ["layer.9", "layer.10"]
