"""State of training: everything but the job that determines the next step."""

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
    """Step and metrics."""
    weights: dict[str, Tensor] | None
    """State dict of the evaluated model (tensors of any shapes and dtypes), on the CPU; none if the last weights are
    exported anyway."""


class MethodState(BaseModel):
    """Counters of a training method over all attempts; base of those of each method."""


@dataclass
class Learner:
    """A network that a training method trains beside the student, with its optimizer and moving average."""

    model: Model
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    """Optimizer of the main training."""
    trainable: nn.Module
    """Its `TrainableModule`, wrapped for the job's processes."""
    optimizer_spec: Optimizer | None = None
    """None: that of the student in every stage."""
    schedule: Schedule | None = None
    """None: that of the student in every stage."""
    aux_modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    """Modules of its losses that learn with it."""

    @property
    def learning(self) -> list[nn.Parameter]:
        """The parameters that its optimizer updates."""
        return [*self.model.parameters(), *self.aux_modules.parameters()]

    @property
    def evaluated(self) -> Model:
        """The model that is evaluated."""
        return self.ema.model if self.ema else self.model


@dataclass
class TrainState:
    """The student and everything that changes with it. The data cursor is the step itself (see `Batches`)."""

    student: Model
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    """Optimizer of the current stage; every stage begins with a new one."""
    aux_modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    """Trained modules of the losses; never exported."""
    step: int = 0
    """Optimizer steps done, over all stages and attempts."""
    seconds: float = 0.0
    """Seconds of training, over all attempts."""
    teacher_flops: int = 0
    """Floating-point operations of the teachers, over all attempts (see `FlopCounter`)."""
    learners: dict[str, Learner] = field(default_factory=dict)
    """Networks that the method trains beside the student, by their names."""
    method: MethodState = field(default_factory=MethodState)
    """Counters of the method."""
    best: Best | None = None
    history: History = field(default_factory=History)
    """Metrics over the steps, over all attempts."""

    @property
    def evaluated(self) -> Model:
        """The model that is evaluated and exported."""
        return self.ema.model if self.ema else self.student


def fresh_student(config: ModelConfig, seed: int) -> Model:
    """A student on the CPU whose random weights depend only on `seed` and the architecture."""
    torch.manual_seed(derive_seed(seed, "weights"))
    student = Model(config)
    torch.manual_seed(derive_seed(seed, "training"))
    return student


def initial_state(recipe: Recipe, student: Model) -> TrainState:
    """The state before the first step, of `student` on its device; without an optimizer yet."""
    return TrainState(student, _averaged(recipe, student), placeholder_optimizer())


def fresh_learner(
    recipe: Recipe, model: Model, optimizer: Optimizer | None = None, schedule: Schedule | None = None
) -> Learner:
    """A learner before the first step, of `model` on its device; without an optimizer yet, and not wrapped. `optimizer`
    and `schedule` default to those of the student."""
    return Learner(model, _averaged(recipe, model), placeholder_optimizer(), model, optimizer, schedule)


def _averaged(recipe: Recipe, model: Model) -> Ema | None:
    """The moving average of `model`, if the recipe has one; `model` gets the recipe's memory format."""
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return Ema(model, recipe.ema_decay) if recipe.ema_decay is not None else None


def placeholder_optimizer() -> torch.optim.Optimizer:
    """Stands for the optimizer until a stage begins."""
    return torch.optim.SGD([torch.zeros(())], lr=0.0)
