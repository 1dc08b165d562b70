"""The loop: teachers, student, objective, step. It knows no loss, optimizer, schedule or method by name.

A training method brings a `Step` of its own in the place of `take_step`, made of the same pieces; data, stages,
checkpoints, metrics and the end of a job stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

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
from worker.optimizers.groups import set_lr
from worker.optimizers.schedules import rate_factor
from worker.outputs import HiddenStates
from worker.students.model import Model
from worker.students.recorder import Recorder
from worker.teachers import TeacherSource
from worker.training.state import TrainState
from worker.training.step_inputs import Prefetcher, SideStream, Signals, StepInputs

GRAD_NORM = "grad_norm"
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a job: everything that its steps need and do not change."""

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
    trainable: nn.Module
    """The student's `TrainableModule`, as the job's processes have wrapped it."""
    seed: int
    trains_student: bool = True
    ranks: SingleProcess = SINGLE_PROCESS
    """The processes that take every step together."""
    side_stream: SideStream | None = None
    """Where the inputs of the next step are prepared while a step runs; none: they are made when they are needed."""
    asks_ahead: bool = True
    """Whether the teachers run there too: not where their outputs for a whole batch are too much to keep."""

    def learning(self, student: nn.Module) -> list[nn.Parameter]:
        """The parameters that the optimizer moves."""
        students = list(student.parameters()) if self.trains_student else []
        return students + list(self.objective.trained.parameters())

    def step_inputs(self, step: int) -> StepInputs:
        """Inputs of step number `step`, prepared as far as they can be."""
        batch = self.batches.at(step)
        parts = list(batch.split(self.ranks.least(min(self.recipe.accumulate, batch.samples))))
        ahead = self.side_stream is not None and self.asks_ahead
        return StepInputs(batch, parts, [self.ask(part) for part in parts] if ahead else None)

    def ask(self, part: Batch) -> Signals:
        """The teachers' outputs for a micro-batch."""
        return {name: teacher(part) for name, teacher in self.teachers.items()}

    def count(self, step_inputs: StepInputs) -> Tensor:
        """Rows that count in the batch of a step, over all processes: a scalar, at least 1."""
        return self.objective.count(step_inputs.batch.targets, self.ranks.sum)

    def epoch_at(self, step: int) -> float:
        """Epochs of this stage that are over before a step, with fraction."""
        return (step - self.plan.first) / self.plan.steps_per_epoch


class TrainableModule(nn.Module):
    """A network that learns, with all that the losses train, as the one module that several processes keep alike."""

    def __init__(self, model: Model, aux_modules: nn.Module) -> None:
        super().__init__()
        self.model, self.aux_modules = model, aux_modules

    def forward(self, compute: Callable[[], Result]) -> Result:
        """`compute()`, which runs the network, between the hooks that the processes have put around this module."""
        return compute()


class Step(Protocol):
    """Takes one optimizer step; returns what it measured: scalars by name, still on the device."""

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]: ...


class Shares(Protocol):
    """Computes the loss of a micro-batch (`number` among those of the step) as its share of the whole batch's mean, by
    the names of its terms; `TOTAL` is the one to differentiate."""

    def __call__(self, number: int, part: Batch, signals: Signals) -> dict[str, Tensor]: ...


class Monitor(Protocol):
    """Looks on between the steps."""

    def step_done(self, state: TrainState, values: dict[str, Tensor]) -> bool:
        """Called after each step with what it measured, still on the device; true asks the loop to leave."""
        ...


def set_rate(stage: Stage, state: TrainState) -> None:
    """Give all optimizers the learning rate of the next step."""
    step = state.step - stage.plan.first
    set_lr(state.optimizer, stage.optimizer.lr * rate_factor(stage.schedule, step, stage.plan))
    for learner in state.learners.values():
        factor = rate_factor(learner.schedule or stage.schedule, step, stage.plan)
        set_lr(learner.optimizer, (learner.optimizer_spec or stage.optimizer).lr * factor)


def take_step(stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
    """One supervised step: the loss, its terms, and the gradient's norm before clipping.

    Every part divides by the count of the whole batch, so the number of parts and of processes does not change the step
    (but batch norm sees each part on its own). Nothing here waits for the device.
    """
    state.student.train(stage.trains_student)
    stage.ranks.begin(stage.seed, state.step)
    count, epoch = stage.count(step_inputs), stage.epoch_at(state.step)

    def shares(number: int, part: Batch, signals: Signals) -> dict[str, Tensor]:
        return objective_shares(stage, run_student(stage, state.student, part, signals), state.optimizer, count, epoch)

    values = accumulate_gradients(stage, stage.trainable, step_inputs, shares)
    values[GRAD_NORM] = descend(stage, state.optimizer, stage.learning(state.student))
    if state.ema is not None and stage.trains_student:
        state.ema.update(state.student, state.step + 1, stage.ranks.own)
    return values


def run_student(stage: Stage, student: Model, part: Batch, signals: Signals) -> BatchOutputs:
    """Outputs of the student for a micro-batch; one that does not learn leaves no graph."""
    bf16 = torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.recipe.precision == "bf16")
    with bf16, torch.set_grad_enabled(stage.trains_student):
        outputs = stage.forward(samples := part.inputs[stage.input_key])
    return BatchOutputs(outputs, part.targets, signals, stage.recorder.take(), student.tokens(samples))


def objective_shares(
    stage: Stage, outputs: BatchOutputs, optimizer: torch.optim.Optimizer, count: Tensor, epoch: float
) -> dict[str, Tensor]:
    """The objective of a micro-batch as its share of a batch of `count` rows that count; see `Shares`."""
    if isinstance(optimizer, Listener):
        optimizer.listen(outputs.outputs)
    return stage.objective(outputs, count, epoch, stage.plan.epochs)


def accumulate_gradients(
    stage: Stage, trainable: nn.Module, step_inputs: StepInputs, shares: Shares
) -> dict[str, Tensor]:
    """Forward and backward passes of all micro-batches through `trainable`; the sums of the shares, over all
    processes."""
    values: dict[str, Tensor] = {}
    for number, part in enumerate(step_inputs.parts):
        signals = stage.ask(part) if step_inputs.signals is None else step_inputs.signals[number]
        with stage.ranks.part(trainable, last=part is step_inputs.parts[-1]):
            found = trainable(partial(shares, number, part, signals))
            found[TOTAL].backward()
        for name, share in found.items():
            values[name] = values[name] + share.detach() if name in values else share.detach()
    return stage.ranks.sum_all(values)


def descend(stage: Stage, optimizer: torch.optim.Optimizer, learning: list[nn.Parameter]) -> Tensor:
    """Clip the gradients of the parameters that learn, and take the optimizer's step; the norm before clipping."""
    parameters = [parameter for parameter in learning if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = stage.ranks.whole(get_total_norm(gradients))
    if stage.recipe.clip_norm is not None:
        clip_grads_with_norm_(parameters, stage.recipe.clip_norm, norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def train(stage: Stage, state: TrainState, watch: Monitor, step: Step = take_step) -> bool:
    """Train `state` to the end of the stage; false when `watch` asked to leave before it."""
    prefetcher = Prefetcher(stage.step_inputs, stage.plan.end, stage.side_stream)
    stage.objective.prepare()
    while state.step < stage.plan.end:
        set_rate(stage, state)
        values = step(stage, state, prefetcher.at(state.step))
        state.step += 1
        prefetcher.prepare(state.step)
        if stage.ranks.agree(watch.step_done(state, values)):
            return False
    return True
