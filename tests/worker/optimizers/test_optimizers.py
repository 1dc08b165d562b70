"""Properties of every optimizer of the contract."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from app.recipe.optimizers import OPTIMIZERS as CONTRACT
from app.recipe.optimizers import AdamP, AdamW, NormalizeAndProject, Optimizer, Sgd, SgdP, SinkGd, Swan
from worker.optimizers import OPTIMIZERS, build_optimizer

SPECS = [
    AdamW(),
    Sgd(lr=0.1, nesterov=True, weight_decay=1e-4),
    AdamP(weight_decay=0.1),
    SgdP(lr=0.1, momentum=0.9, weight_decay=1e-3),
    SinkGd(lr=0.01, weight_decay=0.1),
    Swan(),
    Swan(whitening="exact", rescale=False),
    NormalizeAndProject(inner=AdamW(), every_steps=2),
    NormalizeAndProject(inner=Sgd(lr=0.1)),
    NormalizeAndProject(inner=AdamP()),
    NormalizeAndProject(inner=SinkGd()),
]


def name_of(spec: Optimizer) -> str:
    return f"nap-{spec.inner.kind}" if isinstance(spec, NormalizeAndProject) else spec.kind


every_optimizer = pytest.mark.parametrize("spec", SPECS, ids=name_of)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))


def build(spec: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(spec, model.parameters(), [model])


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        images = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


def test_every_optimizer_of_the_contract_can_be_built() -> None:
    assert set(OPTIMIZERS) == set(CONTRACT)


@every_optimizer
def test_every_setting_of_the_spec_reaches_the_optimizer(spec: Optimizer) -> None:
    settings = spec.stepping.model_dump(exclude={"kind", "groups"})
    for group in build(spec, network()).param_groups:
        assert {name: group.get(name) for name in settings} == settings


@every_optimizer
def test_a_step_lowers_the_loss(spec: Optimizer) -> None:
    model = network()
    images = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    before = model(images).square().mean().item()
    take_steps(model, build(spec, model), 0, 20)
    assert model(images).square().mean().item() < before


@every_optimizer
def test_a_restored_optimizer_takes_bit_equal_steps(spec: Optimizer) -> None:
    straight = network()
    take_steps(straight, build(spec, straight), 0, 6)

    halted = network()
    optimizer = build(spec, halted)
    take_steps(halted, optimizer, 0, 3)
    resumed = network()
    resumed.load_state_dict(halted.state_dict())
    restored = build(spec, resumed)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(resumed, restored, 3, 6)

    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@every_optimizer
def test_a_parameter_without_gradient_is_skipped(spec: Optimizer) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = build(spec, model)
    for parameter in model[0].parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.weight", "0.bias"}
    assert not {id(one) for layer in model[1:] for one in layer.parameters()} & {id(one) for one in optimizer.state}


@pytest.mark.parametrize("spec", [AdamP(lr=0.1), SgdP(lr=0.5, momentum=0.9)], ids=lambda spec: spec.kind)
def test_the_norm_of_a_scale_invariant_weight_grows_slower_than_without_projection(spec: Optimizer) -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 16)
    norms = []
    for delta in (0.1, 0.0):
        weight = nn.Parameter(start.clone())
        optimizer = build_optimizer(spec.model_copy(update={"delta": delta}), [weight])
        for step in range(30):
            target = torch.randn(4, 16, generator=torch.Generator().manual_seed(step % 3))
            optimizer.zero_grad()
            (nn.functional.normalize(weight) * target).sum().backward()
            optimizer.step()
        norms.append(float(weight.detach().norm()))
    projected, plain = norms
    assert projected < plain


def test_a_zero_weight_is_left_to_the_plain_update() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = build_optimizer(AdamP(lr=0.5), [weight])
    weight.grad = torch.tensor([[1.0, -1.0, 2.0], [0.5, 0.5, -0.5]])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -0.5 * weight.grad.sign())
