"""What training changes: all that makes the next step, apart from what the job itself says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from app.recipe.job import Recipe
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


class Ledger(BaseModel):
    """What was written for training, and what that took, over all attempts."""

    steps: int = 0
    """Optimizer steps that learned from it."""
    replaced: int = 0
    """Samples of the data that these steps would have learned from."""
    texts: int = 0
    tokens: int = 0
    """Of the texts, without their prompts."""
    student_flops: int = 0
    """Of writing, and of learning from what was written."""
    teacher_flops: int = 0
    """Of writing, and of saying how good it is."""


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
    ledger: Ledger = field(default_factory=Ledger)
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
    if recipe.channels_last:
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    ema = Ema(student, recipe.ema_decay) if recipe.ema_decay is not None else None
    idle = torch.optim.SGD([torch.zeros(())], lr=0.0)
    return TrainState(student, ema, idle)
