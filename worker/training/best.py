"""Stores the best evaluated epoch, so that its weights can be exported in place of the last ones."""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor

from app.recipe.tasks.base import MainMetric
from worker.students.model import Model
from worker.tasks.base import Metrics
from worker.training.history import Point
from worker.training.state import Best, TrainState


def update_best(state: TrainState, main: MainMetric, metrics: Metrics, model: Model | None) -> None:
    """Make the epoch that was just evaluated the best one if it is better than all before; its weights are copied if
    `model` is given."""
    if state.best is not None and not main.is_better(metrics, state.best.found.values):
        return
    state.best = Best(Point(step=state.step, values=metrics), None if model is None else _weights(model))


def chosen(state: TrainState) -> Model:
    """The model to export: the best one if its weights were stored, else the one that was evaluated last."""
    if state.best is None or state.best.weights is None or state.best.found.step == state.step:
        return state.evaluated
    model = deepcopy(state.evaluated)
    model.load_state_dict(state.best.weights)
    return model


def _weights(model: Model) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
