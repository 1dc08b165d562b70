"""Trajectories of optimizers: parameters after given steps on given gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from app.recipe import optimizers as contract
from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.optimizers import AdamPOptimizer, SgdPOptimizer, build_optimizer
from worker.optimizers.nap import NormProjection
from worker.optimizers.normalized_gd import NormalizedGdOptimizer
from worker.optimizers.sinkgd import equal_norms
from worker.optimizers.swan import newton_schulz, polar_factor, standardized_rows


def adamp(case: Case) -> Iterator[Comparison]:
    yield from _against(case, "adamp", "param.", _run(case, AdamPOptimizer))


def sgdp(case: Case) -> Iterator[Comparison]:
    yield from _against(case, "sgdp", "param.", _run(case, SgdPOptimizer))
    if not case.hyper["nesterov"]:  # with nesterov the authors' code leaves the buffer clean itself
        yield from _against(case, "sgdp", "clean_buffer.param.", _run(case, SgdPOptimizer, project_buffer=False))


def sinkgd(case: Case) -> Iterator[Comparison]:
    gradients, iterations = case.inputs["grads"], case.hyper["iterations"]
    (first,) = equal_norms(gradients[:1], iterations)
    yield Comparison("sinkgd", "normalized_step1", first, case.outputs["normalized_step1"])
    spec = contract.SinkGd(lr=case.hyper["lr"], matrix_ratio=1.0, iterations=iterations)
    yield from _one_matrix(case, spec)


def swan(case: Case) -> Iterator[Comparison]:
    (standard,) = standardized_rows(case.inputs["grads"][:1])
    yield Comparison("swan", "gradnorm_step1", standard, case.outputs["gradnorm_step1"])
    polar = polar_factor(standard[None])[0]
    yield Comparison("swan", "polar_step1", polar, case.outputs["polar_step1"])
    for iterations in (6, 10, 20):
        output = f"newton_schulz_k{iterations}_beta0.5_step1"
        yield Comparison("swan", output, newton_schulz(standard[None], iterations)[0], case.outputs[output])
    yield from _one_matrix(case, contract.Swan(lr=case.hyper["lr"], whitening="exact"))


def nap(case: Case) -> Iterator[Comparison]:
    parameters, hyper = _parameters(case), case.hyper
    learning, bases = list(parameters.values()), {"sgd_momentum": torch.optim.SGD, "adam": torch.optim.Adam}
    settings: dict[str, Any] = {"momentum": hyper["momentum"]} if hyper["momentum"] else {"eps": hyper["adam_eps"]}
    optimizer = bases[hyper["base"]](learning, lr=hyper["lr"], **settings)
    weights, pair = ([parameters[name] for name in names] for names in (("linear", "conv"), ("ln_scale", "ln_offset")))
    NormProjection(optimizer, weights, [pair], hyper["project_every"])
    yield from _against(case, "nap", "param.", _trajectory(case, parameters, optimizer))


def normalized_gd(case: Case) -> Iterator[Comparison]:
    """Trajectories at every learning rate of the file, until every sample is right, where the method ends: no gradient
    tells later mistakes of e^-1000 apart."""
    features, labels = case.inputs["features"], case.inputs["labels"]
    for output, thetas in case.outputs.items():
        if not (match := re.fullmatch(r"theta_nlrgd_g(.+)", output)):
            continue
        model = nn.Linear(features.shape[1], 1, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer = build_optimizer(contract.NormalizedGd(lr=float(match[1])), model.parameters())
        assert isinstance(optimizer, NormalizedGdOptimizer)
        for step, expected in enumerate(thetas):
            found = model.weight.detach()[0].clone()
            yield Comparison("normalized-gd", f"{output}, step {step}", found, expected)
            outputs = model(features)
            margins = labels * outputs[:, 0]
            if (margins > 0).all():
                break
            optimizer.listen(outputs)
            nn.functional.softplus(-margins).mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def _one_matrix(case: Case, spec: contract.Optimizer) -> Iterator[Comparison]:
    weight = nn.Parameter(case.inputs["weight"].clone())
    optimizer = build_optimizer(spec, [weight])
    for step, gradient in enumerate(case.inputs["grads"], 1):
        weight.grad = gradient.clone()
        optimizer.step()
        if (output := f"weight.step{step}") in case.outputs:
            yield Comparison(spec.kind, output, weight.detach().clone(), case.outputs[output])


def _run(case: Case, optimizer_class: type[AdamPOptimizer] | type[SgdPOptimizer], **more: bool) -> dict[str, Tensor]:
    parameters = _parameters(case)
    return _trajectory(case, parameters, optimizer_class(list(parameters.values()), **case.hyper, **more))


def _parameters(case: Case) -> dict[str, nn.Parameter]:
    names = [key.removeprefix("param.") for key in case.inputs if key.startswith("param.")]
    return {name: nn.Parameter(case.inputs[f"param.{name}"].clone()) for name in names}


def _trajectory(case: Case, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters by "<name>.step<t>"."""
    found = {}
    for step in range(len(case.inputs[f"grads.{next(iter(parameters))}"])):
        for name, parameter in parameters.items():
            parameter.grad = case.inputs[f"grads.{name}"][step].clone()
        optimizer.step()
        found |= {f"{name}.step{step + 1}": parameter.detach().clone() for name, parameter in parameters.items()}
    return found


def _against(case: Case, kind: str, prefix: str, found: dict[str, Tensor]) -> Iterator[Comparison]:
    pattern = re.compile(re.escape(prefix) + r"(.+\.step\d+)")
    for output, expected in case.outputs.items():
        if match := pattern.fullmatch(output):
            yield Comparison(kind, output, found[match[1]], expected)
