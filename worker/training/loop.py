"""The loop: teachers, student, objective, step. It knows no loss, optimizer or schedule by name.

A method that changes what a step is (several students, a teacher that learns, inner and outer steps) brings a function
of its own in the place of `take_step`; data, stages, checkpoints, metrics and the end of a job stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from app.recipe.job import Recipe
from app.recipe.optimizers import Optimizer, Schedule
from app.recipe.plan import StagePlan
from worker.data.batches import Batch, Batches
from worker.distributed.ranks import SINGLE_PROCESS, SingleProcess
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.optimizers.base import Listener
from worker.optimizers.schedules import rate_factor
from worker.outputs import HiddenStates
from worker.students.model import Model
from worker.students.recorder import Recorder
from worker.teachers import TeacherSource
from worker.training.state import TrainState
from worker.training.step_inputs import Prefetcher, SideStream, Signals, StepInputs

GRAD_NORM = "grad_norm"


@dataclass(frozen=True, eq=False)
class Stage:
    """What training does not change: one stage of a job."""

    recipe: Recipe
    plan: StagePlan
    optimizer: Optimizer
    schedule: Schedule
    batches: Batches
    objective: Objective
    teachers: Mapping[str, TeacherSource]
    """Those that this stage learns from."""
    forward: Callable[[Tensor], Tensor | HiddenStates]
    """The student as training runs it: itself, or compiled."""
    recorder: Recorder
    """Reads the student's activations."""
    input_key: str
    """Which of a batch's inputs the student reads."""
    device: torch.device
    whole: nn.Module
    """The job's `TrainableModule`, as its ranks have wrapped it."""
    seed: int
    trains_student: bool = True
    ranks: SingleProcess = SINGLE_PROCESS
    """The processes that take every step together."""
    side_stream: SideStream | None = None
    """Where the next lesson is prepared while a step runs; none: it is made when it is needed."""
    asks_ahead: bool = True
    """Whether the teachers are asked in it too: not where what they say of a whole batch is too much to keep."""

    def learning(self, student: nn.Module) -> list[nn.Parameter]:
        """The parameters that the optimizer moves."""
        students = list(student.parameters()) if self.trains_student else []
        return students + list(self.objective.trained.parameters())

    def step_inputs(self, step: int) -> StepInputs:
        """What step number `step` learns from, prepared as far as it can be."""
        batch = self.batches.at(step)
        parts = list(batch.split(self.ranks.least(min(self.recipe.accumulate, batch.samples))))
        ahead = self.side_stream is not None and self.asks_ahead
        return StepInputs(batch, parts, [self.ask(part) for part in parts] if ahead else None)

    def ask(self, part: Batch) -> Signals:
        """What the teachers say of it."""
        return {name: teacher(part) for name, teacher in self.teachers.items()}


class TrainableModule(nn.Module):
    """The student and all that the losses of a job train, as the one module that several processes keep alike."""

    def __init__(self, student: Model, parts: nn.Module) -> None:
        super().__init__()
        self.student, self.parts = student, parts

    def forward(
        self,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        part: Batch,
        signals: Signals,
        count: Tensor,
        epoch: float,
    ) -> dict[str, Tensor]:
        """Share of `part` in the loss of a batch of `count` rows that count, over all ranks."""
        seen = _look(stage, self.student, part, signals)
        if isinstance(optimizer, Listener):
            optimizer.listen(seen.outputs)
        return stage.objective(seen, count, epoch, stage.plan.epochs)


class Step(Protocol):
    """Takes one optimizer step, and tells what it measured, still on the device."""

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]: ...


class Monitor(Protocol):
    """Looks on between the steps."""

    def step_done(self, state: TrainState, values: dict[str, Tensor]) -> bool:
        """Called after each step with what it measured, still on the device; true asks the loop to leave."""
        ...


def train(stage: Stage, state: TrainState, watch: Monitor, step: Step | None = None) -> bool:
    """Train `state` to the end of the stage; false when `watch` asked to leave before it."""
    take = step or take_step
    prefetcher = Prefetcher(stage.step_inputs, stage.plan.end, stage.side_stream)
    stage.objective.prepare()
    while state.step < stage.plan.end:
        set_rate(stage, state)
        values = take(stage, state, prefetcher.at(state.step))
        state.step += 1
        prefetcher.prepare(state.step)
        if stage.ranks.agree(watch.step_done(state, values)):
            return False
    return True


def set_rate(stage: Stage, state: TrainState) -> None:
    """Give the optimizer the learning rate of the next step."""
    factor = rate_factor(stage.schedule, state.step - stage.plan.first, stage.plan)
    for group in state.optimizer.param_groups:
        group["lr"] = stage.optimizer.lr * factor


def take_step(stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
    """One optimizer step; what it measured: the loss, its terms, the gradient's norm before clipping.

    Every part divides by the count of the whole batch, so the number of parts and of processes does not change the step
    (but batch norm sees each part on its own). Nothing here waits for the device.
    """
    state.student.train(stage.trains_student)
    stage.ranks.begin(stage.seed, state.step)
    values: dict[str, Tensor] = {}
    count = stage.objective.count(step_inputs.batch.targets, stage.ranks.sum)
    epoch = (state.step - stage.plan.first) / stage.plan.steps_per_epoch
    for number, part in enumerate(step_inputs.parts):
        signals = stage.ask(part) if step_inputs.signals is None else step_inputs.signals[number]
        with stage.ranks.part(stage.whole, last=part is step_inputs.parts[-1]):
            shares = stage.whole(stage, state.optimizer, part, signals, count, epoch)
            shares[TOTAL].backward()
        for name, share in shares.items():
            values[name] = values[name] + share.detach() if name in values else share.detach()
    values = stage.ranks.sum_all(values)
    values[GRAD_NORM] = _clip(stage, stage.learning(state.student))
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.ema is not None and stage.trains_student:
        state.ema.update(state.student, state.step + 1, stage.ranks.own)
    return values


def _look(stage: Stage, student: Model, part: Batch, signals: Signals) -> BatchOutputs:
    """Have the student run; one that does not learn leaves no graph."""
    bf16 = torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.recipe.precision == "bf16")
    with bf16, torch.set_grad_enabled(stage.trains_student):
        outputs = stage.forward(samples := part.inputs[stage.input_key])
    return BatchOutputs(outputs, part.targets, signals, stage.recorder.take(), student.tokens(samples))


def _clip(stage: Stage, learning: list[nn.Parameter]) -> Tensor:
    parameters = [parameter for parameter in learning if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = stage.ranks.whole(get_total_norm(gradients))
    if stage.recipe.clip_norm is not None:
        clip_grads_with_norm_(parameters, stage.recipe.clip_norm, norm)
    return norm
