"""No training."""

from __future__ import annotations

from app.recipe.methods.untrained import Untrained
from worker.methods.base import Method
from worker.training.loop import Stage, Step, take_step
from worker.training.state import TrainState


class UntrainedMethod(Method[Untrained]):
    """See `Untrained`."""

    def step(self, stage: Stage, state: TrainState) -> Step:
        return take_step  # the plan has no steps
