"""Learning-rate schedules as pure functions of the step, so that there is no state to save."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from app.recipe.optimizers import Constant, Cosine, Linear, MultiStep, Schedule
from app.recipe.plan import StagePlan


def rate_factor(spec: Schedule, step: int, plan: StagePlan) -> float:
    """Factor of the peak rate at optimizer step `step` of a stage, counted from 0.

    During warm-up the rate rises linearly and reaches its peak at the last step of the warm-up. Cosine and linear
    schedules then fall from the peak towards their final ratio, which they would reach one step after the last.
    """
    if step < (warmup := spec.warmup(plan.steps)):
        return (step + 1) / warmup
    return SHAPES[type(spec)](spec, step, plan)


def _constant(spec: Constant, step: int, plan: StagePlan) -> float:
    return 1.0


def _cosine(spec: Cosine, step: int, plan: StagePlan) -> float:
    return spec.final_ratio + (1 - spec.final_ratio) * (1 + math.cos(math.pi * _progress(spec, step, plan))) / 2


def _linear(spec: Linear, step: int, plan: StagePlan) -> float:
    return 1 - (1 - spec.final_ratio) * _progress(spec, step, plan)


def _multi_step(spec: MultiStep, step: int, plan: StagePlan) -> float:
    return spec.gamma ** bisect_right(spec.milestones, step / plan.steps_per_epoch)


def _progress(spec: Cosine | Linear, step: int, plan: StagePlan) -> float:
    warmup = spec.warmup(plan.steps)
    return (step - warmup) / (plan.steps - warmup)


SHAPES: dict[type, Callable[[Any, int, StagePlan], float]] = {
    Constant: _constant,
    Cosine: _cosine,
    Linear: _linear,
    MultiStep: _multi_step,
}
