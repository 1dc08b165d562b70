"""Integers of few bits with shifts, in training and as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.recipe.students.model import ModelConfig
from app.recipe.students.quantisation import ShiftQuant
from worker.bundle.export import export_onnx, export_weights
from worker.bundle.integer import export_integer
from worker.errors import UserError
from worker.students.model import Model
from worker.students.quantisers.layers import QuantisedLinear
from worker.students.quantisers.shift_quant import ShiftQuantiser, codes_of, shift_scales

COLUMNS, CLASSES = 12, 4


def layer(**settings: Any) -> QuantisedLinear:
    torch.manual_seed(0)
    plain = nn.Linear(COLUMNS, 5)
    return QuantisedLinear(plain, ShiftQuantiser(ShiftQuant(**settings), plain))


def inputs(rows: int = 64) -> Tensor:
    """Channels of several octaves, one of zeros."""
    octaves = torch.exp2(-torch.arange(COLUMNS).float() / 2)
    octaves[-1] = 0.0
    return torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(1)) * octaves


def trained(bits: int, **more: Any) -> Model:
    """An MLP on a table after thirty steps."""
    described: dict[str, Any] = {
        "architecture": {"architecture": "mlp", "hidden": [16, 8], "quantise": {"kind": "shift-quant", "bits": bits}},
        "input": {"columns": COLUMNS},
        "preprocessing": {"scale": 0.5, "mean": [0.1] * COLUMNS, "std": [0.3] * COLUMNS},
        **({"classes": CLASSES} | more),
    }
    torch.manual_seed(0)
    model, rows = Model(ModelConfig.model_validate(described)), inputs()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        nn.functional.mse_loss(model(rows), rows[:, :CLASSES].sign()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_the_integers_that_numpy_adds_are_those_of_the_model_bit_for_bit(tmp_path: Path, bits: int) -> None:
    live, rows = trained(bits), inputs(500)
    loaded = export_weights(live, tmp_path, torch.device("cpu"))
    read = export_integer(loaded, tmp_path)
    assert torch.equal(read(rows), live(rows))
    with np.load(tmp_path / "model.integer.npz") as file:
        assert {file[f"weight_{number}"].dtype for number in range(3)} == {np.dtype(np.int8)}
        assert np.abs(file["weight_0"]).max() == file["largest"] == 2 ** (bits - 1) - 1
        assert set(file["shifts_0"]) == {0, 1, 2, 3}
    torch.testing.assert_close(export_onnx(loaded, tmp_path)(rows), live(rows), rtol=1e-5, atol=1e-5)


def test_a_regression_is_read_in_the_units_of_its_data(tmp_path: Path) -> None:
    scaling = {"mean": [3.0] * CLASSES, "std": [2.0] * CLASSES}
    more = {"task": "regression", "classes": None, "targets": CLASSES, "target_scaling": scaling}
    live, rows = trained(6, **more), inputs(50)
    assert torch.equal(export_integer(live, tmp_path)(rows), live(rows))


def test_training_and_evaluation_compute_the_same_product() -> None:
    found, rows = layer(bits=6, momentum=1.0), inputs()
    fake = found(rows).detach()
    exact = found.eval()(rows).detach()
    torch.testing.assert_close(fake, exact, rtol=1e-5, atol=1e-5)
    error = (exact - nn.functional.linear(rows, found.weight, found.bias).detach()).abs().max()
    assert 1e-4 < float(error) < 0.2


def test_more_groups_lose_less_of_small_channels() -> None:
    rows = inputs()
    one, four = (
        ((scales := shift_scales(rows.abs().amax(0), 7, groups)), codes_of(rows, scales.steps, 7) * scales.steps)[1]
        for groups in (1, 4)
    )
    small = rows.abs().amax(0) < rows.abs().max() / 4
    assert int(small.sum()) > 3
    before, after = (float((each - rows)[:, small].square().mean()) for each in (one, four))
    assert after < before / 10


def test_the_gradient_is_rounded_without_bias_and_only_in_training() -> None:
    found, rows = layer(bits=4), inputs()
    outputs = found(rows)
    gradient = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
    drawn = torch.stack([torch.autograd.grad(outputs, found.bias, gradient, retain_graph=True)[0] for _ in range(400)])
    assert len(drawn.unique(dim=0)) > 100
    spread = drawn.std(0) / 20
    assert bool(((drawn.mean(0) - gradient.sum(0)).abs() < 4 * spread).all())
    assert float(spread.min()) > 0


def test_the_gradient_at_the_weight_is_that_of_the_rounded_inputs() -> None:
    found, rows = layer(bits=8, groups=1, momentum=1.0), inputs()
    gradient = torch.full((len(rows), 5), 0.5)  # equal numbers are 127 steps each, and not rounded
    found(rows).backward(gradient)
    steps = shift_scales(rows.abs().amax(0), 127, 1).steps
    rounded = codes_of(rows, steps, 127) * steps
    assert found.weight.grad is not None
    torch.testing.assert_close(found.weight.grad, gradient.T @ rounded, rtol=1e-4, atol=1e-4)


def test_largest_magnitudes_are_observed_in_training_alone() -> None:
    found = layer(momentum=0.5)
    found(torch.ones(2, COLUMNS))
    found(torch.full((2, COLUMNS), 3.0))
    assert found.quantiser.maxima.tolist() == [2.0] * COLUMNS
    found.eval()(torch.full((2, COLUMNS), 100.0))
    assert found.quantiser.maxima.tolist() == [2.0] * COLUMNS


def test_a_layer_whose_sums_need_more_than_32_bits_is_refused() -> None:
    spec = ShiftQuant(bits=8, groups=8)
    ShiftQuantiser(spec, nn.Linear(1000, 1))
    with pytest.raises(UserError, match="2000 inputs"):
        ShiftQuantiser(spec, nn.Linear(2000, 1))
