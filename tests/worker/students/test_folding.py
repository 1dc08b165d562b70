"""Norms that are folded into the layers behind them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from app.recipe.students.architectures import CifarResNet, Vit
from app.recipe.students.heads import NormalisedHead
from app.recipe.students.layers import LayerNorm, LinearAttention, PowerNorm, UnifiedNorm
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.students.folding import with_folded_norms
from worker.students.layers.window_norm import WindowNorm
from worker.students.model import Model

PLAIN = Vit(patch_size=4, width=12, depth=2, heads=3, norm=UnifiedNorm())


def model_of(network: Vit | CifarResNet) -> Model:
    torch.manual_seed(0)
    given = Preprocessing(mean=[0.5], std=[0.3])
    config = ModelConfig(
        architecture=network, input=ImageInput(channels=1, height=8, width=8), preprocessing=given, classes=5
    )
    model = Model(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    for _ in range(3):
        model.train()(torch.randn(16, 1, 8, 8))  # running statistics
    return model.eval().requires_grad_(False).double()


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (PLAIN, 0),
        (PLAIN.model_copy(update={"attention": LinearAttention()}), 0),
        (PLAIN.model_copy(update={"head": NormalisedHead()}), 1),
    ],
)
def test_outputs_stay_and_norms_go(network: Vit, left: int) -> None:
    model, images = model_of(network), torch.randn(6, 1, 8, 8)
    before = model(images)
    folded = with_folded_norms(model)
    assert_close(folded(images), before, rtol=1e-9, atol=1e-9)
    assert sum(isinstance(each, WindowNorm) for each in folded.modules()) == left
    assert torch.equal(model(images), before)


@pytest.mark.parametrize(
    "network",
    [
        PLAIN.model_copy(update={"norm": LayerNorm()}),
        PLAIN.model_copy(update={"norm": PowerNorm()}),
        CifarResNet(depth=8, width=2, norm=UnifiedNorm()),
    ],
)
def test_other_networks_are_left_alone(network: Vit | CifarResNet) -> None:
    model = model_of(network)
    assert with_folded_norms(model) is model
