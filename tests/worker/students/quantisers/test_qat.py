"""8-bit codes in training, and in the graph that holds them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from app.recipe.students.model import ModelConfig
from app.recipe.students.quantisation import Qat
from worker.bundle.export import export_onnx, export_program, export_weights
from worker.students.model import Model
from worker.students.quantisers import quantised, quantised_layers, without_quantisers
from worker.students.quantisers.qat import EightBits, weight_codes

SIDE, CLASSES = 16, 4
STUDENTS: list[dict[str, Any]] = [
    {"architecture": "mlp", "hidden": [16]},
    {"architecture": "cifar-resnet", "depth": 8, "width": 4},
    {"architecture": "vit", "patch_size": 4, "width": 8, "depth": 1, "heads": 2},
    *(
        {"architecture": name, **sizes}
        for name, sizes in (
            ("wide-resnet", {"depth": 10}),
            ("cifar-vgg", {"width": 4}),
            ("mobilenet-v2", {"multiplier": 0.2}),
            ("shufflenet-v2", {"size": "0.5x"}),
        )
    ),
]


def quantiser(low: float = 0.0, high: float = 0.0, momentum: float = 0.1) -> EightBits:
    made = EightBits(Qat(momentum=momentum), nn.Linear(1, 1))
    made.low.fill_(low)
    made.high.fill_(high)
    return made


def model(student: dict[str, Any], **quantise: Any) -> Model:
    torch.manual_seed(0)
    described: dict[str, Any] = {
        "architecture": {**student, **quantise},
        "input": {"channels": 1, "height": SIDE, "width": SIDE},
        "preprocessing": {"scale": 1 / 255, "mean": [0.5], "std": [0.3]},
        "classes": CLASSES,
    }
    return Model(ModelConfig.model_validate(described))


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).float()


def trained(student: dict[str, Any]) -> Model:
    """A student after ten steps on random images."""
    found, samples = model(student, quantise={"kind": "qat"}), images(32)
    optimizer = torch.optim.Adam(found.parameters(), 1e-3)
    for _ in range(10):
        nn.functional.cross_entropy(found(samples), torch.arange(32) % CLASSES).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found.eval().requires_grad_(False)


def test_inputs_are_the_codes_of_their_range() -> None:
    values = torch.linspace(-3.0, 5.0, 999)
    low, high = -1.5, 3.0
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    expected = (np.clip(np.rint(values.numpy() / np.float32(scale)) + zero, 0, 255) - zero) * scale
    np.testing.assert_allclose(quantiser(low, high).eval()(values).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert quantiser(low, high).eval()(torch.zeros(1)) == 0.0
    one_sided = quantiser(0.5, 3.0).eval()(torch.tensor([0.0, 3.0, 9.0]))
    torch.testing.assert_close(one_sided, torch.tensor([0.0, 3.0, 3.0]))


def test_weights_have_a_scale_per_channel_and_keep_their_largest_value() -> None:
    weight = torch.randn(5, 3, 2, 2) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 2.0]).view(-1, 1, 1, 1)
    codes, scale = weight_codes(weight)
    assert codes.abs().amax() <= 127
    assert codes[[0, 1, 2, 4]].abs().flatten(1).amax(1).tolist() == [127.0] * 4
    rounded = quantiser().weight(weight)
    assert torch.equal(rounded, codes * scale)
    assert bool(((rounded - weight).abs() <= scale / 2 + 1e-9).all())
    assert not rounded[3].any()


def test_the_gradient_is_the_identity_within_the_range_and_0_outside() -> None:
    found, weight = quantiser(-1.0, 1.0).eval(), torch.randn(3, 4, requires_grad=True)
    values = torch.tensor([-2.0, -0.7, 0.3, 1.5], requires_grad=True)
    found(values).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 2.0, 3.0, 0.0]
    cotangent = torch.randn(3, 4)
    found.weight(weight).backward(cotangent)
    assert weight.grad is not None
    assert torch.equal(weight.grad, cotangent)


def test_ranges_are_observed_in_training_alone() -> None:
    found = quantiser(momentum=0.25)
    found(torch.tensor([-1.0, 3.0]))
    assert (float(found.low), float(found.high)) == (-1.0, 3.0)
    found(torch.tensor([-2.0, 7.0]))
    assert (float(found.low), float(found.high)) == (-1.25, 4.0)
    found.eval()(torch.tensor([-100.0, 100.0]))
    assert (float(found.low), float(found.high)) == (-1.25, 4.0)
    assert found(torch.tensor([1.0], dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("student", STUDENTS, ids=lambda student: student["architecture"])
def test_paths_and_random_weights_are_those_of_the_plain_network(student: dict[str, Any]) -> None:
    plain, found = model(student), model(student, quantise={"kind": "qat"})
    state = found.network.state_dict()
    ranges = {f"{path}.quantiser.{side}" for path, _ in quantised_layers(found.network) for side in ("low", "high")}
    assert set(state) - ranges == set(plain.network.state_dict())
    assert all(torch.equal(state[name], values) for name, values in plain.network.state_dict().items())
    layers = [layer for layer in plain.network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(ranges) == 2 * len(layers)
    again = Model(plain.config, without_quantisers(found.network)).eval()
    assert torch.equal(again(images(3)), plain.eval()(images(3)))


@pytest.mark.parametrize(
    "student",
    [*STUDENTS[:3], *(pytest.param(each, marks=pytest.mark.long) for each in STUDENTS[3:])],
    ids=lambda student: student["architecture"],
)
def test_every_format_holds_the_quantised_network(tmp_path: Path, student: dict[str, Any]) -> None:
    live, samples = trained(student), images(48)
    expected = live(samples)
    assert float((without_quantisers(live)(samples) - expected).abs().max()) > 1e-4
    loaded = export_weights(live, tmp_path, torch.device("cpu"))
    assert torch.equal(loaded(samples), expected)
    torch.testing.assert_close(export_program(loaded, tmp_path)(samples), expected, rtol=1e-4, atol=1e-4)
    differences = (export_onnx(loaded, tmp_path)(samples) - expected).abs().amax(1)
    assert float(differences.median()) < 1e-5, "but where a value lies between two codes"
    assert float(differences.max()) < 0.05 * max(1.0, float(expected.abs().max()))

    graph = onnx.load(tmp_path / "model.onnx").graph
    layers, kinds = sum(1 for _ in quantised_layers(live.network)), Counter(node.op_type for node in graph.node)
    assert kinds["DequantizeLinear"] == layers + kinds["QuantizeLinear"]
    bytes_of = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    matrices = sum(values.size for values in bytes_of.values() if values.dtype == np.uint8 and values.ndim > 1)
    assert matrices == sum(layer.weight.numel() for _, layer in quantised_layers(live.network))
    assert not [name for name, values in bytes_of.items() if values.dtype == np.float32 and values.ndim == 4]


def test_a_network_of_one_layer_returns_exactly_the_integer_product() -> None:
    layer = quantised(nn.Sequential(nn.Linear(6, 3)), Qat())
    inputs = torch.randn(20, 6)
    layer(inputs)
    found = layer.eval()[0]  # type: ignore[index]
    scale, zero = found.quantiser.input_codes()
    codes, weight_scale = weight_codes(found.weight.detach())
    integers = (np.clip(np.rint(inputs.numpy() / float(scale)) + float(zero), 0, 255) - float(zero)).astype(np.int64)
    product = integers @ codes.numpy().astype(np.int64).T
    expected = product * float(scale) * weight_scale.numpy().T + found.bias.detach().numpy()
    np.testing.assert_allclose(layer(inputs).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
