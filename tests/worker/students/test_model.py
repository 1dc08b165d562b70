"""Model: resampling of inputs, units of outputs, and recorded activations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.recipe.losses.taps import Tap
from app.recipe.students.architectures import CifarResNet, Mlp
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TableInput, TargetScaling
from worker.students.model import Model
from worker.students.recorder import NoSuchModule, Recorder


def classifier(side: int = 8) -> Model:
    config = ModelConfig(
        architecture=CifarResNet(depth=8, width=2),
        input=ImageInput(channels=1, height=side, width=side),
        preprocessing=Preprocessing(scale=1 / 255, mean=[0.5], std=[0.25]),
        classes=3,
    )
    return Model(config).eval()


def test_images_of_the_networks_own_size_are_not_resampled() -> None:
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert classifier().fit(images) is images


def test_images_of_another_size_are_brought_to_the_networks() -> None:
    model, flat = classifier(), torch.full((2, 1, 16, 12), 77, dtype=torch.uint8)
    torch.testing.assert_close(model.fit(flat), torch.full((2, 1, 8, 8), 77.0))
    assert model(flat).shape == (2, 3)
    random = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(model(random), model(model.fit(random)))


def test_answers_have_the_units_of_the_data() -> None:
    config = ModelConfig(
        task="regression",
        architecture=Mlp(hidden=[]),
        input=TableInput(columns=2),
        preprocessing=Preprocessing(mean=[1.0, 2.0], std=[2.0, 4.0]),
        targets=1,
        target_scaling=TargetScaling(mean=[100.0], std=[10.0]),
    )
    model = Model(config)
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0]]))
        layer.bias.zero_()
    assert model(torch.tensor([[3.0, 6.0]])).item() == pytest.approx(100.0 + 10.0 * 2.0)


def test_a_recorder_keeps_what_enters_an_activation_that_works_in_place() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    before, after = Tap(path="0"), Tap(path="1", at="input")
    recorder, samples = Recorder(network, [before, after]), torch.randn(5, 3)
    network(samples)
    seen = recorder.take()
    assert (seen[before] < 0.0).any()
    assert torch.equal(seen[before], seen[after])
    assert torch.equal(seen[before], network[0](samples))


def test_what_was_seen_is_given_once() -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    recorder = Recorder(network, [Tap(path="0")])
    network(torch.randn(5, 3))
    recorder.take()
    with pytest.raises(NoSuchModule, match="does not run"):
        recorder.take()


def test_a_place_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(NoSuchModule, match=r"no module 'layer7'; similar names: conv, norm"):
        Recorder(classifier().network, [Tap(path="layer7")])
