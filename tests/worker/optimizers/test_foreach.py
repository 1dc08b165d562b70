"""AdamP and SGDP over lists of tensors take the steps of the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.worker.optimizers import plain
from worker.optimizers import AdamPOptimizer, SgdPOptimizer, base, projection
from worker.optimizers.base import MASTER

SHAPES = [(4, 3, 3, 3), (4,), (4, 3, 3, 3), (6, 5), (1, 7), (3, 1), (), (5, 1, 3, 3), (0, 2), (4, 3, 3, 3)]
ADAMP: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1}
SGDP: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "dampening": 0.2, "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1}
CASES: list[tuple[Callable[..., torch.optim.Optimizer], Callable[..., None], dict[str, Any]]] = [
    *(
        (AdamPOptimizer, plain.adamp, {**ADAMP, "weight_decay": wd, "nesterov": n})
        for wd in (0.0, 0.1)
        for n in (False, True)
    ),
    *(
        (SgdPOptimizer, plain.sgdp, {**SGDP, "weight_decay": 0.1, "nesterov": n, "project_buffer": p})
        for n in (False, True)
        for p in (False, True)
    ),
]


def start() -> list[nn.Parameter]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]
    parameters[2].data = parameters[2].data.contiguous(memory_format=torch.channels_last)
    return parameters


def gradient_of(weight: Tensor, index: int, step: int) -> Tensor | None:
    """Random; of every third tensor orthogonal to each row, of every other third to the whole; some are missing."""
    if (index + step) % 4 == 3:
        return None
    gradient = torch.randn(
        weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(100 * step + index)
    )
    if weight.ndim > 1 and weight.numel() > 0 and index % 3 < 2:
        rows, weights = (tensor.reshape(len(weight) if index % 3 == 0 else 1, -1) for tensor in (gradient, weight))
        along = (rows * weights).sum(1, keepdim=True) / weights.square().sum(1, keepdim=True)
        gradient = (rows - along * weights).view_as(weight)
    return gradient


def trained(kind: Callable[..., torch.optim.Optimizer], settings: dict[str, Any]) -> list[Tensor]:
    parameters = start()
    optimizer = kind(parameters, **settings)
    for step in range(6):
        for index, parameter in enumerate(parameters):
            parameter.grad = gradient_of(parameter.detach(), index, step)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(("kind", "reference", "settings"), CASES)
def test_lists_of_tensors_take_the_same_steps_as_single_ones(
    kind: Callable[..., torch.optim.Optimizer], reference: Callable[..., None], settings: dict[str, Any]
) -> None:
    expected = [parameter.detach().clone() for parameter in start()]
    states: list[dict[str, Any]] = [{} for _ in expected]
    for step in range(6):
        for index, (weight, state) in enumerate(zip(expected, states, strict=True)):
            if weight.numel() > 0 and (gradient := gradient_of(weight, index, step)) is not None:
                reference(weight, gradient, state, **settings)
    torch.testing.assert_close(trained(kind, settings), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "settings"), [(AdamPOptimizer, ADAMP), (SgdPOptimizer, SGDP)])
def test_how_many_tensors_go_together_changes_nothing(
    kind: Callable[..., torch.optim.Optimizer], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = trained(kind, settings)
    monkeypatch.setattr(base, "CACHED", 1)
    monkeypatch.setattr(projection, "BLOCK", 1)
    torch.testing.assert_close(trained(kind, settings), together, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("kind", "settings"), [(AdamPOptimizer, ADAMP), (SgdPOptimizer, SGDP)])
def test_state_takes_the_layout_of_its_parameter(
    kind: Callable[..., torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    weight = nn.Parameter(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    optimizer = kind([weight], **settings)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    saved = optimizer.state_dict()
    moments = {name: value.contiguous() for name, value in saved["state"][0].items()}
    restored = kind([weight], **settings)
    restored.load_state_dict({**saved, "state": {0: moments}})
    for name, value in optimizer.state[weight].items():
        assert torch.equal(restored.state[weight][name], value)
        assert restored.state[weight][name].stride() == value.stride()


def steps_of_16_bits(dtype: torch.dtype, steps: int, kind: Callable[..., torch.optim.Optimizer]) -> nn.Parameter:
    weight = nn.Parameter(torch.ones(2, 4, dtype=dtype))
    optimizer = kind([weight], lr=1e-4)
    for _ in range(steps):
        weight.grad = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2, dtype=dtype)
        optimizer.step()
        assert all(value.dtype == torch.float32 for value in optimizer.state[weight].values())
    return weight


@pytest.mark.parametrize("kind", [AdamPOptimizer, SgdPOptimizer])
def test_steps_below_the_last_bit_of_a_parameter_in_16_bits_add_up(kind: Callable[..., torch.optim.Optimizer]) -> None:
    rounded, exact = (steps_of_16_bits(dtype, 60, kind) for dtype in (torch.bfloat16, torch.float32))
    assert rounded.detach()[0, 0] < 1
    assert torch.equal(rounded, exact.to(torch.bfloat16))


def test_exact_weights_survive_saving_and_loading() -> None:
    weight = nn.Parameter(torch.ones(2, 4, dtype=torch.bfloat16))
    optimizer = AdamPOptimizer([weight], lr=1e-4)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    twin = nn.Parameter(weight.detach().clone())
    restored = AdamPOptimizer([twin], lr=1e-4)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert restored.state[twin][MASTER].dtype == torch.float32
    assert not torch.equal(restored.state[twin][MASTER], weight.float())
    for name, value in optimizer.state[weight].items():
        assert torch.equal(restored.state[twin][name], value)
