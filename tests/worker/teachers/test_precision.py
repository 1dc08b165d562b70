"""Teachers in fewer bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.architectures import Mlp, Student, WideResNet
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.students.model import Model
from worker.teachers import precision
from worker.teachers.precision import CannotLower, EightBitLinear, lower, narrow

IMAGES = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def model(student: Student | None = None) -> Model:
    torch.manual_seed(0)
    return Model(
        ModelConfig(
            architecture=student or Mlp(hidden=[32, 48]),
            input=ImageInput(channels=1, height=8, width=8),
            preprocessing=Preprocessing(scale=1 / 255, mean=[0.5], std=[0.3]),
            classes=10,
        )
    ).eval()


@torch.no_grad()
def outputs_of(of: Model) -> Tensor:
    return of(IMAGES)


@pytest.mark.parametrize("student", [Mlp(hidden=[32]), WideResNet(depth=10, widen=1)], ids=["mlp", "convolutions"])
def test_bf16_halves_the_weights_and_returns_nearly_the_same_in_float32(student: Student) -> None:
    whole, half = outputs_of(model(student)), lower(model(student), "bf16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    outputs = outputs_of(half)
    assert outputs.dtype == torch.float32
    assert not torch.equal(outputs, whole)
    torch.testing.assert_close(outputs, whole, rtol=0.03, atol=0.03)


def test_fp32_changes_nothing() -> None:
    assert torch.equal(outputs_of(lower(model(), "fp32")), outputs_of(model()))


def test_8_bits_have_a_scale_for_each_row() -> None:
    values = torch.tensor([[1.0, -2.0, 0.5], [1e-3, 3e-3, 0.0], [0.0, 0.0, 0.0]])
    rows, scale = narrow(values)
    assert rows.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(rows.float() * scale, values, rtol=2**-4, atol=1e-6)
    assert rows.float().abs().amax(1).tolist() == [448.0, 448.0, 0.0]


def test_a_product_of_8_bits_is_that_of_the_rounded_numbers() -> None:
    torch.manual_seed(0)
    layer, values = nn.Linear(32, 16).bfloat16(), torch.randn(2, 3, 32).bfloat16()
    expected = []
    for row in values.flatten(0, 1).float():
        rounded = [
            (side / (side.abs().max() / 448.0)).to(torch.float8_e4m3fn).float() * (side.abs().max() / 448.0)
            for side in (row, *layer.weight.detach().float())
        ]
        expected.append(torch.stack([rounded[0] @ weight for weight in rounded[1:]]))
    with torch.no_grad():
        outputs = EightBitLinear(layer)(values)
    assert (outputs.dtype, outputs.shape) == (torch.bfloat16, (2, 3, 16))
    wanted = torch.stack(expected).view(2, 3, 16) + layer.bias.detach().float()
    torch.testing.assert_close(outputs.float(), wanted, rtol=2**-7, atol=2e-2)


def test_fp8_leaves_the_last_layer_which_losses_use() -> None:
    lowered = lower(model(), "fp8")
    kinds = [type(layer) for layer in lowered.network.modules() if isinstance(layer, nn.Linear | EightBitLinear)]
    assert kinds == [EightBitLinear, EightBitLinear, nn.Linear]
    torch.testing.assert_close(outputs_of(lowered), outputs_of(model()), rtol=0.2, atol=0.2)


@pytest.mark.parametrize("student", [Mlp(hidden=[30]), WideResNet(depth=10, widen=1)], ids=["odd", "convolutions"])
def test_fp8_needs_a_layer_that_takes_it(student: Student) -> None:
    with pytest.raises(CannotLower, match="multiples of 16"):
        lower(model(student), "fp8")


def test_fp8_needs_a_machine_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Tensor:
        raise RuntimeError("not on this device")

    monkeypatch.setattr(precision.torch, "_scaled_mm", fail)
    with pytest.raises(CannotLower, match="this machine"):
        lower(model(), "fp8")


class Rotary(nn.Module):
    """A network with a buffer computed at its start, beside stored ones."""

    frequencies: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0.1, 1.0, 4), persistent=False)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def test_buffers_computed_at_the_start_keep_their_bits() -> None:
    network = model()
    network.network = nn.Sequential(Rotary(), nn.Linear(4, 4))
    lower(network, "bf16")
    rotary = network.network[0]
    assert isinstance(rotary, Rotary)
    assert (rotary.frequencies.dtype, rotary.mean.dtype, rotary.count.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.int64,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_multiplies_as_the_processor_does() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no 8-bit floats before Ada")
    torch.manual_seed(0)
    layer, values = nn.Linear(64, 32), torch.randn(24, 64).bfloat16()
    with torch.no_grad():
        outputs = [EightBitLinear(layer).to(device)(values.to(device)).float().cpu() for device in ("cpu", "cuda")]
        plain = F.linear(values.float(), layer.weight, layer.bias)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=2**-6, atol=2e-2)
    torch.testing.assert_close(outputs[1], plain, rtol=0.2, atol=0.2)
