"""What training changes: all that makes the next step, apart from what the job itself says."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.recipe.job import Recipe
from app.recipe.model import ModelConfig
from worker.data.randomness import derive_seed
from worker.optimizers import build_optimizer
from worker.students.classifier import Classifier
from worker.trainer.ema import Ema


@dataclass
class TrainState:
    """The student and everything that moves with it. The data cursor is the step itself (see `Batches`)."""

    student: Classifier
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    step: int = 0
    """Optimizer steps done, over all attempts."""
    seconds: float = 0.0
    """Seconds trained, over all attempts."""

    @property
    def judged(self) -> Classifier:
        """The model that is evaluated and exported."""
        return self.ema.model if self.ema else self.student


def initial_state(recipe: Recipe, config: ModelConfig, seed: int, device: torch.device) -> TrainState:
    """A student with fresh weights, which depend on `seed` and the architecture alone."""
    torch.manual_seed(derive_seed(seed, "weights"))
    student = Classifier(config).to(device)
    torch.manual_seed(derive_seed(seed, "training"))
    ema = Ema(student, recipe.ema_decay) if recipe.ema_decay is not None else None
    return TrainState(student, build_optimizer(recipe.optimizer, student.parameters()), ema)
