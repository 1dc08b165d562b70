"""The built-in encoder of texts: padding, lengths, costs, and the formats that it is written in."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from app.recipe.cost import student_cost
from app.recipe.students.architectures import TextTransformer
from app.recipe.students.layers import (
    ATTENTIONS,
    AttentionSpec,
    PowerNorm,
    RmsNorm,
    Silu,
    SoftmaxAttention,
    SoftplusAttention,
    UnifiedNorm,
)
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.students.module_paths import module_paths
from worker.bundle.export import export_onnx, export_program, export_weights
from worker.students import build
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.text_transformer import sinusoids

TEXT, OUTPUTS, PAD = TextInput(length=12, vocabulary=50, pad=3), 4, 3
KINDS = [kind() for kind in ATTENTIONS if "padding" in kind.masks] + [SoftplusAttention(power=None)]
each = pytest.mark.parametrize("attention", KINDS, ids=str)


def described(attention: AttentionSpec, positions: str = "learned") -> TextTransformer:
    document = {"width": 8, "depth": 2, "heads": 2, "positions": positions, "norm": RmsNorm(), "activation": Silu()}
    return TextTransformer.model_validate({**document, "attention": attention})


def config_of(network: TextTransformer) -> ModelConfig:
    return ModelConfig(task="text-classification", architecture=network, input=TEXT, classes=OUTPUTS)


def texts() -> Tensor:
    """Three texts of 12, 7 and 3 tokens."""
    tokens = torch.randint(4, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    tokens[1, 7:], tokens[2, 3:] = PAD, PAD
    return tokens


@each
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_padding_changes_nothing_and_the_order_of_words_matters(attention: AttentionSpec, positions: str) -> None:
    torch.manual_seed(0)
    network, tokens = build(described(attention, positions), TEXT, OUTPUTS), texts()
    found = network(tokens)
    for row, length in enumerate((12, 7, 3)):
        assert_close(network(tokens[row : row + 1, :length]), found[row : row + 1], rtol=1e-4, atol=1e-6)
    turned = tokens[:1].flip(1)
    assert (network(turned) - found[:1]).abs().max() > 1e-7


@each
def test_a_step_gives_finite_gradients_to_all_weights_also_with_an_empty_text(attention: AttentionSpec) -> None:
    network, tokens = build(described(attention), TEXT, OUTPUTS), texts()
    tokens[2] = PAD
    network(tokens).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@each
def test_costs_and_module_paths_are_those_of_the_network(attention: AttentionSpec) -> None:
    network = described(attention)
    measured, counted = network_cost(config_of(network)), student_cost(network, TEXT, OUTPUTS)
    assert counted is not None
    assert (measured.parameters, measured.flops) == (counted.parameters, counted.flops)
    assert measured.hidden_weights == counted.hidden_weights
    assert module_paths(network) == [name for name, _ in build(network, TEXT, OUTPUTS).named_modules() if name]


@each
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_every_format_gives_the_same_logits_for_texts_of_any_length(
    tmp_path: Path, attention: AttentionSpec, positions: str
) -> None:
    torch.manual_seed(0)
    model = Model(config_of(described(attention, positions))).eval().requires_grad_(False)
    with torch.no_grad():  # fresh logits are all but equal
        for parameter in model.parameters():
            parameter.mul_(3.0)
    calls = [export_weights(model, tmp_path, torch.device("cpu"))]
    calls += [export_onnx(model, tmp_path), export_program(model, tmp_path)]
    for tokens in (texts(), texts()[1:, :7], texts()[2:, :4]):
        for call in calls:
            assert_close(call(tokens), model(tokens), rtol=1e-4, atol=1e-4)


def test_positions_without_weights_are_sines_and_cosines() -> None:
    found = sinusoids(torch.zeros(1, 5, 4, dtype=torch.float64)) / (2**0.5 * 0.02)
    places = torch.arange(5, dtype=torch.float64)
    expected = [places.sin(), (places / 100).sin(), places.cos(), (places / 100).cos()]
    assert_close(found, torch.stack(expected, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [PowerNorm(warmup_steps=1), UnifiedNorm(warmup_steps=1)], ids=["power", "unified"])
def test_norms_by_the_statistics_of_a_batch_leave_padding_out_in_training(norm: PowerNorm | UnifiedNorm) -> None:
    torch.manual_seed(0)
    network = build(described(SoftmaxAttention()).model_copy(update={"norm": norm}), TEXT, OUTPUTS).train()
    padded, tokens = deepcopy(network), texts()[:, :9]
    longer = torch.nn.functional.pad(tokens, (0, 3), value=PAD)
    for _ in range(3):
        assert_close(padded(longer), network(tokens), rtol=1e-4, atol=1e-6)
    statistics = dict(network.named_buffers())
    assert_close(dict(padded.named_buffers()), statistics)
    assert statistics["norm.iterations"] == 3
