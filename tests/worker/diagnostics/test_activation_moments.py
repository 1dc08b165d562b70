"""Mean and variance of activations over depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from app.recipe.diagnostics import ActivationMoments
from app.recipe.students.architectures import Mlp
from app.recipe.students.layers import Relu, Selu
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from tests.worker.students import builders
from worker.data.batches import whole_split
from worker.diagnostics.activation_moments import ActivationMomentsAnalysis, Moments, layer_moments
from worker.diagnostics.base import DiagnosticInputs, HeldOutPart, NotComputable
from worker.students.model import Model

CPU, DEPTH, SIDE = torch.device("cpu"), 16, 16
IMAGES = torch.randn(300, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def mlp(activation: Selu | Relu, depth: int = DEPTH) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=Mlp(hidden=[256] * depth, activation=activation),
        **{"input": ImageInput(channels=1, height=SIDE, width=SIDE), "classes": 3},
        preprocessing=Preprocessing(mean=[0.0], std=[1.0]),
    )
    return Model(config)


def test_moments_are_those_of_all_values_together() -> None:
    values, found = torch.randn(1000, dtype=torch.float64) + 1e6, Moments()
    for part in values.split(300):
        found.add(part)
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert found.variance == pytest.approx(float(values.var(correction=0)), rel=1e-9)


def test_a_self_normalising_network_keeps_mean_and_variance_and_a_plain_one_does_not() -> None:
    normalised = layer_moments(mlp(Selu()), IMAGES, CPU)
    assert len(normalised) == DEPTH
    assert all(abs(each.mean) < 0.15 and 0.75 < each.variance < 1.25 for each in normalised)
    assert layer_moments(mlp(Relu()), IMAGES, CPU)[-1].variance < 0.75


def test_they_are_those_of_the_layers_outputs() -> None:
    model, seen = mlp(Relu(), 2), list[Tensor]()
    layers = [module for module in model.network.modules() if isinstance(module, nn.ReLU)]
    hooks = [layer.register_forward_hook(lambda _m, _i, output: seen.append(output.detach())) for layer in layers]
    model.eval()(IMAGES)
    for hook in hooks:
        hook.remove()
    for found, output in zip(layer_moments(model, IMAGES, CPU), seen, strict=True):
        assert found.mean == pytest.approx(float(output.mean()), rel=1e-5)
        assert found.variance == pytest.approx(float(output.var(correction=0)), rel=1e-5)


def test_student_and_teachers_are_side_by_side_and_unchanged(tmp_path: Path) -> None:
    student, teacher = mlp(Selu(), 3).train(), mlp(Relu(), 2)
    samples = whole_split({student.input_key: IMAGES}, torch.zeros(len(IMAGES), dtype=torch.int64))
    part = HeldOutPart(samples)
    inputs = DiagnosticInputs(lambda _: torch.zeros(0), part, None, 0, CPU, student, {"relu": teacher})
    found = ActivationMomentsAnalysis(ActivationMoments())(inputs)
    assert [row["model"] for row in found.table] == ["student"] * 3 + ["relu"] * 2
    assert found.figures["relu"]["last_variance"] == found.table[-1]["variance"]
    assert found.figures["student"]["largest_variance"] == max(row["variance"] for row in found.table[:3])
    assert student.training
    assert not any(module._forward_hooks for module in student.modules())
    assert found.draw is not None
    found.draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_activations_of_the_transformers_library_count() -> None:
    model = builders.model("bert")
    assert len(layer_moments(model, builders.samples(model.config), CPU)) >= 2


def test_a_network_without_activations_has_no_figures() -> None:
    with pytest.raises(NotComputable, match="no activation that is a module"):
        layer_moments(mlp(Relu(), 0), IMAGES, CPU)
