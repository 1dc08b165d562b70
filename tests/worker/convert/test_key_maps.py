"""Networks as torchvision names their weights: converted by the known key maps, they give the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from app.recipe.students.model import ModelConfig
from app.recipe.teachers.key_map import Conversion
from app.recipe.teachers.key_maps import KEY_MAPS
from worker.convert import convert
from worker.students.weights import load_model

TEACHERS = Path(__file__).parents[3] / "examples" / "teachers"
DEPTHS = (18, 34, 50, 101, 152)
SIDE = 64


def described(depth: int) -> dict[str, Any]:
    words: dict[str, Any] = yaml.safe_load((TEACHERS / f"torchvision-resnet{depth}.yaml").read_text())
    words["config"]["input"] |= {"height": SIDE, "width": SIDE}
    return words


class Block(nn.Module):
    """Two 3x3 convolutions or a bottleneck, whose 3x3 convolution has the stride."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        outputs = width * expansion
        kernels = [(1, inputs, width, 1), (3, width, width, stride), (1, width, outputs, 1)]
        if expansion == 1:
            kernels = [(3, inputs, width, stride), (3, width, width, 1)]
        self.count = len(kernels)
        for number, (size, before, after, step) in enumerate(kernels, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, size, step, size // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        states = images
        for number in range(1, self.count + 1):
            states = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(states))
            states = states.relu() if number < self.count else states
        return (states + (self.downsample(images) if self.downsample else images)).relu()


class ResNet(nn.Module):
    """The paper's network with its strides in the 3x3 convolutions, under torchvision's names."""

    def __init__(self, blocks: list[int], expansion: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(blocks):
            width, layers = 64 * 2**stage, nn.Sequential()
            for number in range(count):
                layers.append(Block(inputs, width, 2 if stage and not number else 1, expansion))
                inputs = width * expansion
            self.add_module(f"layer{stage + 1}", layers)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        states = nn.functional.max_pool2d(self.bn1(self.conv1(images)).relu(), 3, 2, 1)
        for stage in range(1, 5):
            states = self.get_submodule(f"layer{stage}")(states)
        return self.fc(states.mean((2, 3)))  # type: ignore[no-any-return]


@torch.no_grad()
def randomise(network: nn.Module) -> nn.Module:
    """Statistics and scales of batch norm that no two channels share, and residual branches that stay small."""
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if "running_var" in name or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(torch.rand_like(tensor) * 0.2 + 0.4)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor) * 0.1)
    return network.eval()


async def require_same_logits(network: nn.Module, words: dict[str, Any], folder: Path, **saved: Any) -> None:
    """Convert the saved network as `words` say, and hold both against each other on raw pixels."""
    config = ModelConfig.model_validate(words["config"])
    order = Conversion(key_map=KEY_MAPS[words["key_map"]])
    (folder / config.file_name).write_text(config.model_dump_json())
    (folder / "convert.json").write_text(order.model_dump_json())
    torch.save({**network.state_dict(), **saved}, folder / "weights.pt")
    await convert(folder)
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(words["config"]["preprocessing"][key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected, found = network((pixels / 255 - mean) / std), load_model(folder)(pixels)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
async def test_a_resnet_under_torchvisions_names_gives_the_same_logits(tmp_path: Path, depth: int) -> None:
    words = described(depth)
    told = words["config"]["architecture"]["config"]
    expansion = 4 if told["layer_type"] == "bottleneck" else 1
    network = randomise(ResNet(told["depths"], expansion, words["config"]["classes"]))
    await require_same_logits(network, words, tmp_path)


@pytest.mark.parametrize("depth", DEPTHS)
async def test_torchvisions_own_resnets_give_the_same_logits(tmp_path: Path, depth: int) -> None:
    try:
        from torchvision.models import get_model
    except Exception as error:  # whatever torchvision raises beside a torch that it was not built for
        pytest.skip(f"torchvision can't be imported here: {error}")
    await require_same_logits(randomise(get_model(f"resnet{depth}", weights=None)), described(depth), tmp_path)


def test_every_description_of_a_torchvision_network_is_valid() -> None:
    for depth in DEPTHS:
        words = yaml.safe_load((TEACHERS / f"torchvision-resnet{depth}.yaml").read_text())
        assert ModelConfig.model_validate(words["config"]).outputs == 1000
        assert words["key_map"] in KEY_MAPS
        assert json.dumps(words["config"]["architecture"]["config"]).count("resnet")
