"""Binary weights, and the spiking network that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.recipe.students.model import ModelConfig
from worker.bundle.export import export_onnx, export_weights
from worker.bundle.spiking import export_spiking, operations
from worker.bundle.spiking_reader import read_weights, simulate
from worker.students.model import Model
from worker.students.quantisers import quantised_layers
from worker.students.quantisers.binary import ScaledRelu, binary_weight, centred, fit_factors

COLUMNS, CLASSES = 13, 4


def rows(count: int = 64) -> Tensor:
    return torch.randn(count, COLUMNS, generator=torch.Generator().manual_seed(1))


def trained(steps: int = 100) -> Model:
    """An MLP on a table with two binary layers, after thirty steps."""
    quantise = {"kind": "binary", "percentile": 100.0, "steps": steps}
    described: dict[str, Any] = {
        "architecture": {"architecture": "mlp", "hidden": [21, 18, 11], "quantise": quantise},
        "input": {"columns": COLUMNS},
        "preprocessing": {"scale": 0.5, "mean": [0.1] * COLUMNS, "std": [0.3] * COLUMNS},
        "classes": CLASSES,
    }
    torch.manual_seed(0)
    model, samples = Model(ModelConfig.model_validate(described)), rows()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        nn.functional.mse_loss(model(samples), samples[:, :CLASSES]).backward()
        optimizer.step()
        optimizer.zero_grad()
    fit_factors(model.eval(), samples, 100.0)
    return model.requires_grad_(False)


def test_a_weight_is_the_signs_times_the_mean_magnitude() -> None:
    latent = torch.tensor([[[0.5], [-0.25], [0.0]], [[-1.0], [1.0], [0.5]]], requires_grad=True)
    expected = torch.tensor([[[0.25], [-0.25], [0.25]], [[-5 / 6], [5 / 6], [5 / 6]]])
    torch.testing.assert_close(binary_weight(latent), expected)
    assert centred(torch.tensor([[3.0, -1.0, 1.0]])).tolist() == [[1.0, -1.0, 0.0]]


def test_layers_between_the_first_and_the_last_are_binary_and_none_has_a_bias() -> None:
    live = trained()
    layers = [layer for layer in live.network.modules() if isinstance(layer, nn.Linear)]
    assert [layer.bias for layer in layers] == [None] * 4
    assert [layer for _, layer in quantised_layers(live.network)] == layers[1:-1]
    used = layers[1].quantiser.weight(layers[1].weight)
    assert all(len(row.abs().unique()) == 1 for row in used)
    state = live.network.state_dict()
    again = Model(live.config).eval()
    again.network.load_state_dict(state)
    assert torch.equal(again(rows()), live(rows()))


def test_training_keeps_the_latent_weights_centred_and_clipped() -> None:
    live = trained().train()
    layer = next(layer for _, layer in quantised_layers(live.network))
    layer.weight.data.mul_(20).add_(1.0)
    live(rows())
    assert float(layer.weight.abs().max()) <= 1.0
    once = layer.weight.clone()
    assert torch.equal(live.eval()(rows()), live(rows()))
    assert torch.equal(layer.weight, once), "evaluation changes no weight"


def test_spikes_tend_to_the_outputs_of_the_network(tmp_path: Path) -> None:
    live, samples = trained(steps=1000), rows(200)
    loaded = export_weights(live, tmp_path, torch.device("cpu"))
    expected = live(samples)
    torch.testing.assert_close(export_onnx(loaded, tmp_path)(samples), expected, rtol=1e-4, atol=1e-4)
    found = export_spiking(loaded, tmp_path)(samples)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().mean()) < 0.03 * scale
    assert float((found.argmax(-1) == expected.argmax(-1)).float().mean()) > 0.9
    with np.load(tmp_path / "model.spiking.npz") as file:
        assert file["signs_0"].shape == (18, 3)
        weights = read_weights(file)
    assert [weight.shape for weight in weights] == [(13, 21), (21, 18), (18, 11), (11, 4)]
    factors = [float(layer.factor) for layer in live.modules() if isinstance(layer, ScaledRelu)]
    binary = [layer for _, layer in quantised_layers(live.network)]
    second = binary[0].quantiser.weight(binary[0].weight) * factors[0] / factors[1]
    np.testing.assert_allclose(weights[1], second.numpy().T, rtol=1e-5)


def test_a_neuron_spikes_at_1_and_keeps_what_is_left() -> None:
    sums, (spikes,) = simulate([np.array([[0.4]]), np.array([[2.0]])], np.array([[1.0], [-1.0], [5.0]]), 5)
    assert spikes.tolist() == [[2], [0], [5]], "0.4 a step makes 2 spikes in 5 steps; more than one a step is lost"
    assert sums.tolist() == [[4.0], [0.0], [10.0]]


def test_operations_are_counted_by_spikes_and_neurons() -> None:
    weights = [np.zeros((5, 3)), np.zeros((3, 2)), np.zeros((2, 4))]
    assert operations(weights, [10.0, 6.0], 7) == (15, 7 * (3 + 2 + 4) + 10 * 2 + 6 * 4)


@pytest.mark.parametrize(("values", "factor"), [([0.0, 0.0, 0.0, 3.0], 3.0), ([0.0] * 4, 1.0), ([1.0, 2, 3, 4], 2.5)])
def test_a_layer_that_is_mostly_silent_still_has_a_threshold(values: list[float], factor: float) -> None:
    layer = ScaledRelu()
    fit_factors(nn.Sequential(layer), torch.tensor(values).view(-1, 1), 50.0)
    assert float(layer.factor) == factor
