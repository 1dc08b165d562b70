"""The loop: teacher, student, objective, step. It knows no loss, optimizer or schedule by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from app.recipe.job import Recipe
from app.recipe.plan import TrainingPlan
from worker.data.batches import Batch, Batches
from worker.losses.objective import TOTAL, Objective
from worker.optimizers.schedules import rate_factor
from worker.teachers import Teacher
from worker.trainer.state import TrainState

GRAD_NORM = "grad_norm"


@dataclass(frozen=True)
class Course:
    """What training does not change."""

    recipe: Recipe
    plan: TrainingPlan
    batches: Batches
    objective: Objective
    teacher: Teacher | None
    device: torch.device


class Watch(Protocol):
    """Looks on between the steps."""

    def step_done(self, state: TrainState, values: dict[str, Tensor]) -> bool:
        """Called after each step with what it measured, still on the device; true asks the loop to leave."""
        ...


def train(course: Course, state: TrainState, watch: Watch) -> bool:
    """Train `state` to the end of the plan; false when `watch` asked to leave before it."""
    while state.step < course.plan.total_steps:
        set_rate(course, state)
        values = take_step(course, state, course.batches.at(state.step))
        state.step += 1
        if watch.step_done(state, values):
            return False
    return True


def set_rate(course: Course, state: TrainState) -> None:
    """Give the optimizer the learning rate of the next step."""
    factor = rate_factor(course.recipe.schedule, state.step, course.plan)
    for group in state.optimizer.param_groups:
        group["lr"] = course.recipe.optimizer.lr * factor


def take_step(course: Course, state: TrainState, batch: Batch) -> dict[str, Tensor]:
    """One optimizer step on `batch`; what it measured: the loss, its terms, the gradient's norm before clipping.

    Every part divides by the count of the whole batch, so the number of parts does not change the step (but batch norm
    sees each part on its own). Nothing here waits for the device.
    """
    state.student.train()
    values: dict[str, Tensor] = {}
    count = course.objective.count(batch.labels)
    for part in batch.split(course.recipe.accumulate):
        shares = _forward(course, state, part, count)
        shares[TOTAL].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, share in shares.items():
            values[name] = values[name] + share.detach() if name in values else share.detach()
    values[GRAD_NORM] = _clip(state, course.recipe.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.ema is not None:
        state.ema.update(state.student, state.step + 1)
    return values


def _forward(course: Course, state: TrainState, part: Batch, count: Tensor) -> dict[str, Tensor]:
    with torch.autocast(course.device.type, torch.bfloat16, enabled=course.recipe.precision == "bf16"):
        signal = course.teacher(part.images) if course.teacher else None
        logits = state.student(part.images)
    said, head = signal or (None, None)
    return course.objective(logits, part.labels, said, count, head)


def _clip(state: TrainState, largest: float | None) -> Tensor:
    parameters = [parameter for parameter in state.student.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if largest is not None:
        clip_grads_with_norm_(parameters, largest, norm)
    return norm
