"""The kernels of AdamP and SGDP under Triton's interpreter; `test_projected.py` runs this file, see there.

A program takes some milliseconds here: small tensors, few steps, tiles so small that there are several.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.golden import HERE, Case, read_cases
from tests.golden import optimizers as golden
from tests.worker.optimizers import plain
from worker.optimizers import AdamPOptimizer, SgdPOptimizer, projected, projected_kernels, tables
from worker.optimizers.base import MASTER

ADAMP: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1}
SGDP: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "dampening": 0.2, "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1}
CASES: list[tuple[Callable[..., torch.optim.Optimizer], Callable[..., None], dict[str, Any]]] = [
    (AdamPOptimizer, plain.adamp, {**ADAMP, "weight_decay": 0.1, "nesterov": True}),
    (AdamPOptimizer, plain.adamp, {**ADAMP, "weight_decay": 0.0, "nesterov": False}),
    (SgdPOptimizer, plain.sgdp, {**SGDP, "weight_decay": 0.1, "nesterov": True, "project_buffer": True}),
    (SgdPOptimizer, plain.sgdp, {**SGDP, "weight_decay": 0.1, "nesterov": False, "project_buffer": True}),
    (SgdPOptimizer, plain.sgdp, {**SGDP, "weight_decay": 0.0, "nesterov": False, "project_buffer": False}),
]
Gradients = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projected, "runs_on_triton", lambda parameter: True)
    monkeypatch.setattr(tables, "BLOCK", 128)
    monkeypatch.setattr(tables, "PIECE", 128)
    monkeypatch.setattr(projected_kernels, "ROWS_OF_A_DECISION", 16)


@pytest.fixture(autouse=True)
def fresh_tables() -> Iterator[None]:
    yield
    tables.layout_of.cache_clear()


def random(weight: Tensor) -> Tensor:
    return torch.randn(weight.shape)


def orthogonal(weight: Tensor, rows: int) -> Tensor:
    """A gradient with no part along the weights of any of so many rows."""
    cut, along = (tensor.reshape(rows, -1).double() for tensor in (random(weight), weight))
    cut = cut - (cut * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True) * along
    return cut.view(weight.shape).float()


def by_channel(weight: Tensor) -> Tensor:
    return orthogonal(weight, len(weight))


def as_a_whole(weight: Tensor) -> Tensor:
    """Along the weights in the first channel, and against them in the second, by as much."""
    gradient, (first, second) = by_channel(weight), weight[:2].flatten(1)
    gradient[0] += weight[0]
    gradient[1] -= weight[1] * first.square().sum() / second.square().sum()
    return gradient


TENSORS: list[tuple[tuple[int, ...], Gradients]] = [
    *(((4, 3, 3, 3), kind) for kind in (random, by_channel, as_a_whole)),
    *(((2, 300), kind) for kind in (by_channel, as_a_whole)),
    *(
        ((18, 4), by_channel),
        ((3, 24), as_a_whole),
        ((5,), random),
        ((130,), random),
        ((), random),
        ((1, 7), by_channel),
    ),
]
"""In tiles of 16, 4 and 1 rows, with cut rows, and of lengths that four divides and that it doesn't."""


def weights(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The second in channels-last."""
    torch.manual_seed(0)
    made = [torch.randn(shape) for shape in shapes]
    return [made[0], made[1].contiguous(memory_format=torch.channels_last), *made[2:]] if made[1].ndim == 4 else made


def mode(weight: Tensor, gradient: Tensor) -> str:
    """By the reference's own test, that a case is the one that it is meant to be."""
    settings = {"eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1}

    def fires(rows: Tensor, gradients: Tensor) -> bool:
        return rows.ndim > 1 and plain.project(rows, gradients, gradients, settings)[1] < 1.0

    if not fires(weight, gradient):
        return random.__name__
    each = zip(weight.flatten(1), gradient.flatten(1), strict=True)
    return by_channel.__name__ if all(fires(w[None], g[None]) for w, g in each) else as_a_whole.__name__


def expected(
    start: list[Tensor], gradients: list[list[Tensor]], reference: Callable[..., None], settings: dict[str, Any]
) -> list[Tensor]:
    exact = [weight.double() for weight in start]
    states: list[dict[str, Any]] = [{} for _ in exact]
    for step in gradients:
        for weight, gradient, state in zip(exact, step, states, strict=True):
            reference(weight, gradient.double(), state, **settings)
    return [weight.float() for weight in exact]


def take(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize(("kind", "reference", "settings"), CASES)
def test_steps_are_those_of_the_plain_form_in_float64(
    kind: Callable[..., torch.optim.Optimizer], reference: Callable[..., None], settings: dict[str, Any]
) -> None:
    start = weights([shape for shape, _ in TENSORS])
    gradients = [[make(weight) for weight, (_, make) in zip(start, TENSORS, strict=True)] for _ in range(2)]
    meant = [make.__name__ for _, make in TENSORS]
    assert [mode(weight, gradient) for weight, gradient in zip(start, gradients[0], strict=True)] == meant
    parameters = [nn.Parameter(weight.clone()) for weight in start]
    take(kind(parameters, **settings), parameters, gradients)
    found = [parameter.detach() for parameter in parameters]
    torch.testing.assert_close(found, expected(start, gradients, reference, settings), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_tiny_and_huge_weights_are_moved_right(scale: float) -> None:
    start = [scale * weight for weight in weights([(4, 3, 3, 3), (3, 24)])]
    gradients = [[by_channel(weight) for weight in start]]
    parameters = [nn.Parameter(weight.clone()) for weight in start]
    settings = {**SGDP, "lr": scale, "weight_decay": 0.1 / scale, "nesterov": False, "project_buffer": True}
    take(SgdPOptimizer(parameters, **settings), parameters, gradients)
    found = [parameter.detach() / scale for parameter in parameters]
    theirs = [weight / scale for weight in expected(start, gradients, plain.sgdp, settings)]
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "settings"), [(AdamPOptimizer, ADAMP), (SgdPOptimizer, SGDP)])
def test_a_checkpoint_goes_from_one_path_to_the_other(
    kind: Callable[..., torch.optim.Optimizer], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = [weight.half() for weight in weights([(3, 24), (6, 3), (5,)])]
    gradients = [[by_channel(start[0].float()), *(random(weight) for weight in start[1:])] for _ in range(2)]
    ends = {}
    for paths in ((True, True), (True, False), (False, True)):
        parameters = [nn.Parameter(weight.clone()) for weight in start]
        state: dict[str, Any] = {}
        for quick, step in zip(paths, gradients, strict=True):
            monkeypatch.setattr(projected, "runs_on_triton", lambda parameter, quick=quick: quick)
            optimizer = kind(parameters, weight_decay=0.1, **settings)
            if state:
                optimizer.load_state_dict(copy.deepcopy(state))
            take(optimizer, parameters, [step])
            state = optimizer.state_dict()
        ends[paths] = state["state"]
        for parameter, kept in zip(parameters, state["state"].values(), strict=True):
            assert torch.equal(parameter.detach(), kept[MASTER].half())
    torch.testing.assert_close(ends[True, False], ends[True, True], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ends[False, True], ends[True, True], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "settings"), [(AdamPOptimizer, ADAMP), (SgdPOptimizer, SGDP)])
def test_a_restored_optimizer_takes_bit_equal_steps(
    kind: Callable[..., torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    start = weights([(3, 24), (6, 3), (5,)])
    gradients = [[by_channel(start[0]), *(random(weight) for weight in start[1:])] for _ in range(3)]
    straight, halted = ([nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    take(kind(straight, **settings), straight, gradients)
    optimizer = kind(halted, **settings)
    take(optimizer, halted, gradients[:1])
    restored = kind(halted, **settings)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take(restored, halted, gradients[1:])
    assert all(torch.equal(one, other) for one, other in zip(straight, halted, strict=True))


def test_parameters_of_one_kind_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[int]()
    monkeypatch.setattr(projected_kernels, "launch", lambda batch, *_: given.append(len(batch)))
    parameters = [nn.Parameter(torch.randn(shape)) for shape in [(8, 4), (8,), (2, 3), (12, 4)]]
    take(AdamPOptimizer(parameters), parameters, [[torch.randn_like(parameter) for parameter in parameters]])
    assert sorted(given) == [1, 3]


def test_gradients_are_seen_as_used_by_autograd() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    product = (weight * weight).sum()
    take(SgdPOptimizer([weight], lr=0.1), [weight], [[torch.randn(4, 4)]])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("method", ["adamp", "sgdp"])
def test_the_first_steps_are_those_of_the_authors(method: str) -> None:
    for case in read_cases(HERE / f"{method}.npz")[2:3]:
        for comparison in getattr(golden, method)(first_steps(case)):
            torch.testing.assert_close(comparison.found, comparison.expected, rtol=1e-5, atol=1e-6)


def first_steps(case: Case) -> Case:
    """The first two of them, in float32."""
    inputs = {name: (value[:2] if name.startswith("grads.") else value).float() for name, value in case.inputs.items()}
    outputs = {name: value.float() for name, value in case.outputs.items() if name.endswith((".step1", ".step2"))}
    return dataclasses.replace(case, inputs=inputs, outputs=outputs)
