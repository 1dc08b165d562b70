"""Spectrum of the Hessian, and the loss around the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.recipe.diagnostics import DiagnosticSpec, Hessian, LossLandscape
from app.recipe.students.architectures import CifarResNet, Vit
from app.recipe.students.layers import SoftAttention
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from app.recipe.students.quantisation import Qat
from tests.worker.training.builders import play, stage
from worker.data.batches import Batch, whole_split
from worker.diagnostics import run_diagnostics
from worker.diagnostics.base import HeldOutPart
from worker.diagnostics.probe_loss import ProbeLoss, probing
from worker.metrics.hessian import Ritz, density, eigenpairs, lanczos
from worker.metrics.loss_surface import scaled
from worker.protocol import Finished
from worker.students.model import Model

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"samples": 20, "lanczos_steps": 5, "steps": 10}


def images(count: int = 12) -> Batch:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=random)
    return whole_split({"images": pixels}, torch.arange(count) % 3)


def model(architecture: Any) -> Model:
    torch.manual_seed(0)
    size = ImageInput(channels=1, height=8, width=8)
    scaling = Preprocessing(scale=1 / 255, mean=[0.5], std=[0.3])
    return Model(ModelConfig(architecture=architecture, input=size, preprocessing=scaling, classes=3))


def run(spec: DiagnosticSpec, student: Model, folder: Path) -> Any:
    samples = images()
    return run_diagnostics(
        [spec], lambda batch: batch.targets, HeldOutPart(samples), 3, CPU, folder, student, train=samples
    )


def test_a_known_matrix_has_its_spectrum() -> None:
    matrix = torch.diag(torch.tensor([5.0, -3.0, 1.0, 0.5], dtype=torch.float64))
    random = torch.Generator().manual_seed(0)
    found = eigenpairs(lambda v: matrix @ v, lambda: torch.randn(4, generator=random).double(), 2, 1e-9, 1000)
    assert found.converged
    assert found.values == pytest.approx([5.0, -3.0], rel=1e-5)
    ritz = lanczos(lambda v: matrix @ v, torch.ones(4, dtype=torch.float64), 4)
    assert ritz.values.tolist() == pytest.approx([-3.0, 0.5, 1.0, 5.0], rel=1e-4)
    assert ritz.weights.tolist() == pytest.approx([0.25] * 4, rel=1e-4)


def test_lanczos_that_keeps_two_vectors_still_finds_the_ends() -> None:
    matrix = torch.diag(torch.linspace(-1, 4, 30, dtype=torch.float64))
    ritz = lanczos(lambda v: matrix @ v, torch.ones(30, dtype=torch.float64), 25, kept=2)
    assert (float(ritz.values[0]), float(ritz.values[-1])) == pytest.approx((-1.0, 4.0), abs=1e-3)


def test_a_density_is_one_in_all() -> None:
    found = density([Ritz(torch.tensor([-1.0, 2.0]).double(), torch.tensor([0.3, 0.7]).double())], 2000)
    assert float(found.values.sum() * (found.grid[1] - found.grid[0])) == pytest.approx(1.0)


def test_a_bias_of_zeros_keeps_its_place_and_no_number_is_undefined() -> None:
    for scaling in ("filter", "layer", "model", "weight"):
        weights = [torch.ones(2, 3), torch.zeros(2)]
        found = scaled([torch.randn(2, 3), torch.randn(2)], weights, scaling)  # type: ignore[arg-type]
        assert all(bool(part.isfinite().all()) for part in found)
    assert scaled([torch.zeros(2)], [torch.ones(2)], "filter")[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("architecture", [CifarResNet(depth=8, width=4), Vit(patch_size=4, width=8, depth=1, heads=2)])
def test_products_are_those_of_the_whole_matrix_with_batch_norm_and_attention(architecture: Any) -> None:
    network = model(architecture)
    with probing(network, images(), CPU) as loss:
        weights = loss.weights
        direction = torch.randn(len(weights), generator=torch.Generator().manual_seed(1))
        direction /= direction.norm()
        product = loss.product(direction)
    given = network.normalized(images().inputs["images"]).double()
    exact = ProbeLoss(network.network.double().eval(), [(given, images().targets)])
    step = 1e-4
    slope = (exact.at(exact.weights + step * direction) - 2 * exact.at(exact.weights)) / step**2
    slope += exact.at(exact.weights - step * direction) / step**2
    assert float(direction @ product) == pytest.approx(slope, rel=2e-2, abs=1e-4)


def test_the_models_and_random_numbers_are_as_before(tmp_path: Path) -> None:
    student = model(CifarResNet(depth=8, width=4)).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.get_rng_state()
    first = run(Hessian(**QUICK), student, tmp_path).figures["hessian"]
    surface = run(LossLandscape(samples=9, points=3), student, tmp_path).figures["loss-landscape"]
    assert torch.equal(torch.get_rng_state(), state)
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert first["samples"] == {"fitted": 0, "judged": 0, "training": 12}
    assert surface["samples"]["training"] == 9
    again = run(Hessian(**QUICK), student, tmp_path).figures["hessian"]
    assert again == first
    middle = next(row for row in surface["table"] if row["first"] == 0.0)["losses"][1]
    assert middle == surface["figures"]["student"]["loss"]
    assert surface["figures"]["student"]["lowest"] <= middle <= surface["figures"]["student"]["highest"]


def test_axes_of_the_hessian_curve_most(tmp_path: Path) -> None:
    student = model(CifarResNet(depth=8, width=4))
    rises = {}
    for axes in ("random", "hessian"):
        spec = LossLandscape(axes=axes, scaling="model", points=3, extent=1e-2)
        rises[axes] = run(spec, student, tmp_path).figures["loss-landscape"]["figures"]["student"]["mean_rise"]
    assert abs(rises["hessian"]) > abs(rises["random"])


def test_a_layer_without_a_second_derivative_is_named(tmp_path: Path) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            return values.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient.clone()

    class Layer(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = Once.apply(values)
            return found

    student = model(CifarResNet(depth=8, width=4))
    student.network = nn.Sequential(student.network, Layer())
    assert "no second derivative" in run(Hessian(**QUICK), student, tmp_path).figures["hessian"]["left_out"]


@pytest.mark.parametrize(
    "architecture",
    [
        Vit(patch_size=2, width=8, depth=1, heads=2, attention=SoftAttention(normalised=False)),
        CifarResNet(depth=8, width=4, quantise=Qat()),
    ],
)
def test_a_layer_with_a_gradient_alone_has_a_landscape_and_no_hessian(architecture: Any, tmp_path: Path) -> None:
    student = model(architecture)
    assert "no second derivative" in run(Hessian(**QUICK), student, tmp_path).figures["hessian"]["left_out"]
    assert run(LossLandscape(points=3), student, tmp_path).figures["loss-landscape"]["figures"]


def test_report_and_card_have_student_and_teacher(tmp_path: Path) -> None:
    asked = [{"kind": "hessian", **QUICK}, {"kind": "loss-landscape", "samples": 20, "points": 3}]
    word = play(stage(tmp_path, teacher=True, evaluation={"diagnostics": asked}), tmp_path).word
    assert isinstance(word, Finished), word
    found = json.loads((tmp_path / "bundle" / "report.json").read_text())["diagnostics"]
    for name in ("hessian", "loss-landscape"):
        assert set(found[name]["figures"]) == {"student", "teacher"}
        assert all(math.isfinite(value) for one in found[name]["figures"].values() for value in one.values())
        assert (tmp_path / "bundle" / f"{name}.png").is_file()
    assert "### hessian\n\nOn 20 training samples.\n" in (tmp_path / "bundle" / "README.md").read_text()


def test_the_loss_is_that_of_the_probes_alone() -> None:
    samples = images(7)
    network = model(Vit(patch_size=4, width=8, depth=1, heads=2)).eval()
    with probing(network, samples, CPU) as loss:
        expected = nn.functional.cross_entropy(network(samples.inputs["images"]), samples.targets)
        assert loss.at(loss.weights) == pytest.approx(float(expected), rel=1e-6)
