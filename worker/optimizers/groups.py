"""Learning rates and weight decay of groups of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from app.recipe.optimizers import Optimizer
from app.recipe.optimizers.base import ParameterGroup

LR_RATIO = "lr_ratio"
"""Key in an optimizer's groups: their learning rate as a share of the optimizer's. None: all of it."""
Names = Mapping[nn.Parameter, str]
"""Names of parameters, as their network gives them."""


def unmatched(spec: Optimizer, names: Iterable[str]) -> list[int]:
    """Positions of the groups that match none of these names of parameters."""
    known, patterns = list(names), [group.match for group in spec.stepping.groups]
    return [index for index, each in enumerate(patterns) if not any(matches(each, name) for name in known)]


def divide_groups(optimizer: torch.optim.Optimizer, spec: Optimizer, names: Names) -> None:
    """Divide every group of a fresh `optimizer` by the groups of `spec`, those first that none of them matches.

    Parameters without a name among `names`, such as those that the losses train, keep the optimizer's settings.
    """
    if spec.stepping.groups:
        optimizer.param_groups[:] = [part for group in optimizer.param_groups for part in _divide(group, spec, names)]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give the optimizer this learning rate, and each of its groups its share."""
    optimizer.defaults["lr"] = lr
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(LR_RATIO, 1.0)


def _divide(group: dict[str, Any], spec: Optimizer, names: Names) -> list[dict[str, Any]]:
    found, rest = spec.stepping.groups, list[nn.Parameter]()
    divided: list[list[nn.Parameter]] = [[] for _ in found]
    for parameter in group["params"]:
        matching = (index for index, each in enumerate(found) if matches(each.match, names.get(parameter, "")))
        index = next(matching, None)
        (rest if index is None else divided[index]).append(parameter)
    parts = [{**group, "params": rest}]
    parts += [
        {**group, "params": parameters, **_settings(spec, each)}
        for each, parameters in zip(found, divided, strict=True)
    ]
    return [part for part in parts if part["params"]]


def _settings(spec: Optimizer, group: ParameterGroup) -> dict[str, float]:
    found = {} if group.lr is None else {LR_RATIO: group.lr / spec.lr}
    return found if group.weight_decay is None else {**found, "weight_decay": group.weight_decay}


def matches(pattern: str, name: str) -> bool:
    """Whether the pattern matches a tensor's name, or the path of a module that holds it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
