"""State of training: all that makes the next step, apart from what the job itself says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from app.recipe.job import Recipe
from app.recipe.optimizers import Optimizer, Schedule
from app.recipe.students.model import ModelConfig
from worker.data.randomness import derive_seed
from worker.students.model import Model
from worker.training.ema import Ema
from worker.training.history import History, Point


class Best(NamedTuple):
    """The best evaluated epoch so far."""

    found: Point
    """Its metrics."""
    weights: dict[str, Tensor] | None
    """State of the judged model, on the CPU; none where the last weights are exported anyway."""


class MethodState(BaseModel):
    """Numbers that a training method keeps over all attempts; each method that has some derives its own."""


@dataclass
class Learner:
    """A network that a training method trains beside the student, and what moves with it."""

    model: Model
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    """Of the main training."""
    trainable: nn.Module
    """The `TrainableModule` of it, as the job's processes have wrapped it."""
    optimizer_spec: Optimizer | None = None
    """None: as the student's in every stage."""
    schedule: Schedule | None = None
    """None: as the student's in every stage."""

    @property
    def evaluated(self) -> Model:
        """The model that is evaluated."""
        return self.ema.model if self.ema else self.model


@dataclass
class TrainState:
    """The student and everything that moves with it. The data cursor is the step itself (see `Batches`)."""

    student: Model
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    """Of the stage that `step` lies in; every stage begins with a fresh one."""
    aux_modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    """What the losses themselves train; never exported."""
    step: int = 0
    """Optimizer steps done, over all stages and attempts."""
    seconds: float = 0.0
    """Seconds trained, over all attempts."""
    teacher_flops: int = 0
    """Operations of teachers, over all attempts (see `FlopCounter`)."""
    learners: dict[str, Learner] = field(default_factory=dict)
    """Networks that the method trains beside the student, by their names."""
    method: MethodState = field(default_factory=MethodState)
    """What the method counts."""
    best: Best | None = None
    history: History = field(default_factory=History)
    """What was measured on the way, over all attempts."""

    @property
    def evaluated(self) -> Model:
        """The model that is evaluated and exported."""
        return self.ema.model if self.ema else self.student


def fresh_student(config: ModelConfig, seed: int) -> Model:
    """A student whose weights depend on `seed` and the architecture alone, on the CPU."""
    torch.manual_seed(derive_seed(seed, "weights"))
    student = Model(config)
    torch.manual_seed(derive_seed(seed, "training"))
    return student


def initial_state(recipe: Recipe, student: Model) -> TrainState:
    """`student`, on its device, before its first step; it has no optimizer yet."""
    return TrainState(student, _averaged(recipe, student), idle_optimizer())


def fresh_learner(
    recipe: Recipe, model: Model, optimizer: Optimizer | None = None, schedule: Schedule | None = None
) -> Learner:
    """`model`, on its device, before its first step; it has no optimizer yet, and no process has wrapped it. None: as
    the student's."""
    return Learner(model, _averaged(recipe, model), idle_optimizer(), model, optimizer, schedule)


def _averaged(recipe: Recipe, model: Model) -> Ema | None:
    """The moving average of `model`, which is laid out as the recipe wants it."""
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return Ema(model, recipe.ema_decay) if recipe.ema_decay is not None else None


def idle_optimizer() -> torch.optim.Optimizer:
    """In the place of one until a stage begins."""
    return torch.optim.SGD([torch.zeros(())], lr=0.0)
