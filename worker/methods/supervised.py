"""Supervised training: steps on the data only."""

from __future__ import annotations

from app.recipe.methods.supervised import Supervised
from worker.methods.base import Method
from worker.training.loop import Stage, Step, take_step
from worker.training.state import TrainState


class SupervisedMethod(Method[Supervised]):
    """See `Supervised`."""

    def step(self, stage: Stage, state: TrainState) -> Step:
        return take_step
