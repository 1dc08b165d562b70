"""Rolling-back fine-tuning of a pretrained student (arXiv 1901.06140)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from app.recipe.methods.base import FIELD
from app.recipe.methods.rollback import Rollback
from app.recipe.optimizers import Optimizer
from app.recipe.optimizers.base import ParameterGroup
from worker.errors import UserError
from worker.methods.base import Method, MethodInputs
from worker.optimizers.groups import matches
from worker.students.depth import depth_groups
from worker.students.model import last_layer
from worker.training.loop import Stage, Step, take_step
from worker.training.state import MethodState, TrainState

EVAL = "eval/"
"""How the names of held-out metrics begin."""


@torch.no_grad()
def roll_back(current: Mapping[str, Tensor], pretrained: Mapping[str, Tensor], kept: Sequence[str]) -> list[str]:
    """Give the tensors of a network's state, by name and of any dtype, their pretrained values, in place, but for those
    that a pattern of `kept` matches; the names of the others."""
    returned = [name for name in current if not any(matches(pattern, name) for pattern in kept)]
    for name in returned:
        current[name].copy_(pretrained[name])
    return returned


class RollbackState(MethodState):
    """What was measured so far."""

    ends: list[dict[str, float]] = []
    """Metrics of the student before each of the periods but the first, as it was last evaluated."""


class RollbackMethod(Method[Rollback]):
    """See `Rollback`; its steps are supervised."""

    State = RollbackState

    def __init__(self, spec: Rollback, inputs: MethodInputs) -> None:
        super().__init__(spec, inputs)
        # an attempt that goes on comes here before it reads its checkpoint, so these are pretrained as well
        state = inputs.student.network.state_dict()
        self._pretrained = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
        self._starts: list[int] = []
        """Steps before each of the periods."""

    def step(self, stage: Stage, state: TrainState) -> Step:
        return take_step

    def arrange(self, stages: list[Stage]) -> list[Stage]:
        """Gives every period the learning rates of its groups. Raises UserError (`invalid_job`) for a student whose
        groups or last layer can't be told."""
        self._starts = [stage.plan.first for stage in stages]
        optimizers = [self._optimizer(stage.optimizer, number) for number, stage in enumerate(stages)]
        return [replace(stage, optimizer=each) for stage, each in zip(stages, optimizers, strict=True)]

    def begin(self, stage: Stage, state: TrainState) -> None:
        """Rolls the student back, and its moving average, before the first step of a period."""
        assert isinstance(state.method, RollbackState)
        state.method.ends.append(_last_metrics(state))
        kept = [*self._kept(self._starts.index(stage.plan.first)), *self._head]
        for model in (state.student, state.ema.model if state.ema else None):
            if model is not None:
                roll_back(model.network.state_dict(), self._pretrained, kept)

    def figures(self, state: TrainState) -> dict[str, Any]:
        """Of every period the groups that it kept, and the student's metrics at its end."""
        assert isinstance(state.method, RollbackState)
        ends = [*state.method.ends, _last_metrics(state)]
        periods = [{"kept": self._kept(number), "metrics": metrics} for number, metrics in enumerate(ends)]
        return {"rollback": {"head": self._head, "periods": periods}}

    def _optimizer(self, optimizer: Optimizer, number: int) -> Optimizer:
        ratio, patterns = self.spec.head_lr_ratio, self._head
        if number:
            ratio, patterns = self.spec.kept_lr_ratio, self._kept(number)
        return optimizer.with_groups([ParameterGroup(match=each, lr=optimizer.lr * ratio) for each in patterns])

    def _kept(self, number: int) -> list[str]:
        """Patterns of the groups that are kept when period `number`, counted from 0, begins."""
        return [pattern for group in self._groups[:number] for pattern in group]

    @cached_property
    def _groups(self) -> list[list[str]]:
        found = [list(group) for group in self.spec.groups] or depth_groups(self.inputs.student.network)
        if len(found) < self.spec.periods - 1:
            wanted = f"{self.spec.periods - 1} groups, by the names of modules, or fewer periods"
            message = f"{FIELD}.groups: the student's network has {len(found)} groups by itself; accepted: {wanted}"
            raise UserError("invalid_job", message, f"{FIELD}.groups")
        self._require(found, "groups")
        return found

    @cached_property
    def _head(self) -> list[str]:
        if self.spec.head:
            self._require([self.spec.head], "head")
            return self.spec.head
        layer = last_layer(self.inputs.student)
        names = [name for name, module in self.inputs.student.network.named_modules() if module is layer]
        if not names:
            message = f"{FIELD}.head: the student has no linear layer for its outputs; accepted: names of modules"
            raise UserError("invalid_job", message, f"{FIELD}.head")
        return names

    def _require(self, groups: Sequence[Sequence[str]], field: str) -> None:
        """Raises UserError (`invalid_job`) for a pattern that matches nothing."""
        names = [name for name, _ in self.inputs.student.network.named_parameters()]
        for pattern in (pattern for group in groups for pattern in group):
            if not any(matches(pattern, name) for name in names):
                message = f"{FIELD}.{field}: {pattern} matches no parameter of the student; accepted: names of modules"
                raise UserError("invalid_job", message, f"{FIELD}.{field}")


def _last_metrics(state: TrainState) -> dict[str, float]:
    """Of the newest evaluation, by their names."""
    for point in reversed(state.history.points):
        found = {name.removeprefix(EVAL): value for name, value in point.values.items() if name.startswith(EVAL)}
        if found:
            return found
    return {}
