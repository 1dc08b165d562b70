"""Optimizers and learning-rate schedules of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from app.recipe.optimizers import AdamP as AdamPSpec
from app.recipe.optimizers import AdamW, NormalizeAndProject, Optimizer, Sgd
from app.recipe.optimizers import NormalizedGd as NormalizedGdSpec
from app.recipe.optimizers import SgdP as SgdPSpec
from app.recipe.optimizers import SinkGd as SinkGdSpec
from app.recipe.optimizers import Swan as SwanSpec
from worker.errors import UserError
from worker.optimizers.adamp import AdamPOptimizer
from worker.optimizers.groups import Names, divide_groups
from worker.optimizers.nap import NormProjection
from worker.optimizers.normalized import NormalizedOptimizer
from worker.optimizers.normalized_gd import NormalizedGdOptimizer
from worker.optimizers.roles import hidden_matrices, normalisations, scales_and_offsets
from worker.optimizers.sgdp import SgdPOptimizer
from worker.optimizers.sinkgd import SinkGdOptimizer
from worker.optimizers.swan import SwanOptimizer

Parameters = Sequence[nn.Parameter]
Modules = Sequence[nn.Module]
NO_NAMES: Names = {}


# Fused kernels read each weight once. On the CPU `foreach` runs operation by operation over all weights: a step of
# AdamW over 3.4 million weights took five times as long (17.9 ms to 3.6 ms, one thread).


def _sgd(spec: Sgd, parameters: Parameters, modules: Modules) -> torch.optim.Optimizer:
    # torch's fused SGD does not support sharded weights, which are of another type
    fused = all(type(parameter) is nn.Parameter for parameter in parameters)
    return torch.optim.SGD(parameters, **_arguments(spec), fused=fused)


def _adamw(spec: AdamW, parameters: Parameters, modules: Modules) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **_arguments(spec), fused=True)


def _adamp(spec: AdamPSpec, parameters: Parameters, modules: Modules) -> torch.optim.Optimizer:
    return AdamPOptimizer(parameters, **_arguments(spec))


def _sgdp(spec: SgdPSpec, parameters: Parameters, modules: Modules) -> torch.optim.Optimizer:
    return SgdPOptimizer(parameters, **_arguments(spec))


def _normalized(kind: type[NormalizedOptimizer]) -> Callable[[Any, Parameters, Modules], torch.optim.Optimizer]:
    def build(spec: SinkGdSpec | SwanSpec, parameters: Parameters, modules: Modules) -> torch.optim.Optimizer:
        matrices = hidden_matrices(parameters, modules)
        hidden = set(matrices)
        return kind(matrices, [one for one in parameters if one not in hidden], **_arguments(spec))

    return build


def _nap(spec: NormalizeAndProject, parameters: Parameters, modules: Modules) -> torch.optim.Optimizer:
    normalised = [module for module in modules if any(True for _ in normalisations(module))]
    members = {parameter for module in normalised for parameter in module.parameters()}
    kept = [parameter for parameter in parameters if parameter in members]
    if not kept:
        raise UserError(
            "invalid_job",
            "nap is for networks with normalisation layers, and the trained modules have none; accepted: any optimizer "
            "but nap, or a student such as cifar-resnet, wide-resnet or vit",
            "recipe.optimizer.kind",
        )
    optimizer = build_optimizer(spec.inner, parameters, modules)
    weights = hidden_matrices(kept, normalised)
    NormProjection(optimizer, weights, scales_and_offsets(kept, normalised), spec.every_steps)
    return optimizer


def _normalized_gd(spec: NormalizedGdSpec, parameters: Parameters, modules: Modules) -> torch.optim.Optimizer:
    return NormalizedGdOptimizer(parameters, **_arguments(spec))


OPTIMIZERS: dict[type, Callable[[Any, Parameters, Modules], torch.optim.Optimizer]] = {
    Sgd: _sgd,
    AdamW: _adamw,
    AdamPSpec: _adamp,
    SgdPSpec: _sgdp,
    SinkGdSpec: _normalized(SinkGdOptimizer),
    SwanSpec: _normalized(SwanOptimizer),
    NormalizeAndProject: _nap,
    NormalizedGdSpec: _normalized_gd,
}


def build_optimizer(
    spec: Optimizer, parameters: Iterable[nn.Parameter], modules: Iterable[nn.Module] = (), names: Names = NO_NAMES
) -> torch.optim.Optimizer:
    """The optimizer that `spec` describes, for `parameters`.

    `modules` are the networks of the parameters, in which embeddings, output layers and normalisation layers are found,
    which `sinkgd`, `swan` and `nap` treat differently. `names` are those that the optimizer's groups match. An
    optimizer that is a `Listener` needs the student's outputs. Raises UserError (`invalid_job`) if `nap` finds no
    normalisation layer.
    """
    built = OPTIMIZERS[type(spec)](spec, list(parameters), list(modules))
    divide_groups(built, spec, names)
    return built


def _arguments(spec: Optimizer) -> dict[str, Any]:
    return spec.model_dump(exclude={"kind", "groups"})
