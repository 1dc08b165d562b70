"""The training loop: teachers, student, objective, step. It names no loss, optimizer, schedule or method.

A training method replaces `take_step` by its own `Step`, built from the same functions; data, stages, checkpoints,
metrics and the end of a job stay as they are.
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
from worker.training.label_sample import LabelSample
from worker.training.state import TrainState
from worker.training.step_inputs import Prefetcher, SideStream, Signals, StepInputs

GRAD_NORM = "grad_norm"
Result = TypeVar("Result")


class BatchSampler(Protocol):
    """Batches that depend on the student's weights."""

    def refresh(self, state: TrainState, ranks: SingleProcess) -> None:
        """Called before the batch of a step is chosen, with the state that the step begins with."""
        ...

    def values(self, step: int) -> dict[str, Tensor]:
        """Metrics of the batch of a step that was taken: floating scalars by name."""
        ...


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a job: the constant inputs of its steps."""

    recipe: Recipe
    plan: StagePlan
    optimizer: Optimizer
    schedule: Schedule
    batches: Batches
    objective: Objective
    teachers: Mapping[str, TeacherSource]
    """Sources of the teachers that this stage uses."""
    forward: Callable[[Tensor], Tensor | HiddenStates]
    """The student's forward pass, eager or compiled: for raw samples (B, ...), outputs (B, C) floating, or hidden
    states (B, S, H) of a language model."""
    recorder: Recorder
    """Records the student's activations."""
    input_key: str
    """Key of the student's input in a batch."""
    device: torch.device
    trainable: nn.Module
    """The student's `TrainableModule`, wrapped for the job's processes."""
    seed: int
    trains_student: bool = True
    ranks: SingleProcess = SINGLE_PROCESS
    """The processes that take every step together."""
    side_stream: SideStream | None = None
    """Stream on which the inputs of the next step are prepared while a step runs; none: they are prepared when
    needed."""
    sampler: BatchSampler | None = None
    """Chooses the batches by the student's weights; none: they depend on seed and step alone."""
    prefetches_teachers: bool = True
    """Whether teacher outputs are computed there too: not if those of a whole batch would take too much memory."""

    label_sample: LabelSample | None = None
    """Draws the labels of a step; none: outputs are for all classes."""

    def learning(self, student: nn.Module) -> list[nn.Parameter]:
        """The parameters that the optimizer updates."""
        students = [each for each in student.parameters() if each.requires_grad] if self.trains_student else []
        return students + list(self.objective.trained.parameters())

    def step_inputs(self, step: int) -> StepInputs:
        """Inputs of step number `step`; see `StepInputs` for shapes and dtypes."""
        batch = self.batches.at(step)
        parts = min(self.recipe.accumulate, batch.samples)
        micro_batches = list(batch.split(self.ranks.min_count(parts) if self.recipe.accumulate > 1 else parts))
        ahead = self.side_stream is not None and self.prefetches_teachers
        signals = [self.teacher_signals(micro_batch) for micro_batch in micro_batches] if ahead else None
        return StepInputs(batch, micro_batches, signals)

    def teacher_signals(self, micro_batch: Batch) -> Signals:
        """The teachers' outputs for a micro-batch, by name; see `TeacherSignal` for shapes and dtypes."""
        return {name: teacher(micro_batch) for name, teacher in self.teachers.items()}

    def count(self, step_inputs: StepInputs) -> Tensor:
        """Number of valid rows in the batch of a step, over all processes: an int64 scalar, at least 1."""
        return self.objective.count(step_inputs.batch.targets, self.ranks.sum)

    def epoch_at(self, step: int) -> float:
        """Epochs of this stage done before a step, with fraction."""
        return (step - self.plan.first) / self.plan.steps_per_epoch


class TrainableModule(nn.Module):
    """A trained network and the trained modules of the losses, as one module that is synchronised across processes."""

    def __init__(self, model: Model, aux_modules: nn.Module) -> None:
        super().__init__()
        self.model, self.aux_modules = model, aux_modules

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Call `compute()`, which runs the network, within the hooks of the wrapper around this module."""
        return compute()


class Step(Protocol):
    """Takes one optimizer step; returns metrics: floating scalars by name, on the device."""

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """Take the step; metrics are floating scalars by name."""
        ...


class Shares(Protocol):
    """Computes the loss of a micro-batch (`number` among those of the step) as its share of the whole batch's mean.

    Returns floating scalars by the names of the loss terms; `TOTAL` is the one to differentiate.
    """

    def __call__(self, number: int, micro_batch: Batch, signals: Signals) -> dict[str, Tensor]:
        """The shares of micro-batch `number`: floating scalars by name."""
        ...


class Monitor(Protocol):
    """Observes training between the steps."""

    def step_done(self, state: TrainState, values: dict[str, Tensor]) -> bool:
        """Called after each step with its metrics, floating scalars on the device; true stops the loop."""
        ...


def set_rate(stage: Stage, state: TrainState) -> None:
    """Set the learning rate of the next step in all optimizers."""
    step = state.step - stage.plan.first
    set_lr(state.optimizer, stage.optimizer.lr * rate_factor(stage.schedule, step, stage.plan))
    for learner in state.learners.values():
        factor = rate_factor(learner.schedule or stage.schedule, step, stage.plan)
        set_lr(learner.optimizer, (learner.optimizer_spec or stage.optimizer).lr * factor)


def take_step(stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
    """One supervised step; returns the loss, its terms, and the gradient norm before clipping, as floating scalars.

    Every micro-batch divides by the count of the whole batch, so the number of micro-batches and of processes does not
    change the step (but batch norm is computed per micro-batch). Nothing here waits for the device.
    """
    state.student.train(stage.trains_student)
    stage.ranks.begin_step(stage.seed, state.step)
    count, epoch = stage.count(step_inputs), stage.epoch_at(state.step)

    def shares(number: int, micro_batch: Batch, signals: Signals) -> dict[str, Tensor]:
        outputs = run_student(stage, state.student, micro_batch, signals)
        return objective_shares(stage, outputs, state.optimizer, count, epoch)

    values = accumulate_gradients(stage, stage.trainable, step_inputs, shares)
    values[GRAD_NORM] = update_student(stage, state)
    return values


def update_student(stage: Stage, state: TrainState) -> Tensor:
    """`descend` with the gradients of the student and of the terms' modules, and update the average of its weights;
    returns the gradient norm."""
    norm = descend(stage, state.optimizer, stage.learning(state.student))
    if state.ema is not None and stage.trains_student:
        state.ema.update(state.student, state.step + 1, stage.ranks.local)
    return norm


def run_student(stage: Stage, student: Model, micro_batch: Batch, signals: Signals) -> BatchOutputs:
    """Outputs of the student for a micro-batch (see `BatchOutputs`), without a graph if the student is not trained."""
    bf16 = torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.recipe.precision == "bf16")
    with bf16, torch.set_grad_enabled(stage.trains_student):
        if stage.label_sample is not None:
            micro_batch, signals = stage.label_sample(micro_batch, signals)
        outputs = stage.forward(samples := micro_batch.inputs[stage.input_key])
    features, tokens = stage.recorder.take(), student.tokens(samples)
    return BatchOutputs(
        outputs,
        micro_batch.targets,
        signals,
        features,
        tokens,
        rows_per_sample=micro_batch.rows_per_sample,
        sample_index=micro_batch.index,
    )


def objective_shares(
    stage: Stage, outputs: BatchOutputs, optimizer: torch.optim.Optimizer, count: Tensor, epoch: float
) -> dict[str, Tensor]:
    """The objective of a micro-batch as its share of a batch of `count` valid rows, an int64 scalar; see `Shares`."""
    if isinstance(optimizer, Listener):
        optimizer.listen(outputs.outputs)
    return stage.objective(outputs, count, epoch, stage.plan.epochs)


def accumulate_gradients(
    stage: Stage, trainable: nn.Module, step_inputs: StepInputs, shares: Shares
) -> dict[str, Tensor]:
    """Run forward and backward passes of all micro-batches through `trainable`; returns the sums of the shares over
    all processes, floating scalars by name."""
    values: dict[str, Tensor] = {}
    for number, micro_batch in enumerate(step_inputs.micro_batches):
        prefetched = step_inputs.signals
        signals = stage.teacher_signals(micro_batch) if prefetched is None else prefetched[number]
        with stage.ranks.micro_batch(trainable, last=micro_batch is step_inputs.micro_batches[-1]):
            found = trainable(partial(shares, number, micro_batch, signals))
            found[TOTAL].backward()
        for name, share in found.items():
            values[name] = values[name] + share.detach() if name in values else share.detach()
    return stage.ranks.sum_all(values)


def descend(stage: Stage, optimizer: torch.optim.Optimizer, learning: list[nn.Parameter]) -> Tensor:
    """Clip the gradients of the trained parameters and take the optimizer's step; returns the gradient norm before
    clipping, a floating scalar."""
    parameters = [parameter for parameter in learning if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = stage.ranks.full_tensor(get_total_norm(gradients))
    if stage.recipe.clip_norm is not None:
        clip_grads_with_norm_(parameters, stage.recipe.clip_norm, norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def refresh(stage: Stage, state: TrainState) -> None:
    """Prepare the choice of the next step's batch, if there is one."""
    if stage.sampler is not None and state.step < stage.plan.end:
        stage.sampler.refresh(state, stage.ranks)


def train(stage: Stage, state: TrainState, monitor: Monitor, step: Step = take_step) -> bool:
    """Train `state` to the end of the stage; false if `monitor` stopped it before."""
    prefetcher = Prefetcher(stage.step_inputs, stage.plan.end, stage.side_stream)
    stage.objective.prepare()
    refresh(stage, state)
    while state.step < stage.plan.end:
        set_rate(stage, state)
        values = step(stage, state, prefetcher.at(state.step))
        if stage.sampler is not None:
            values |= stage.sampler.values(state.step)
        state.step += 1
        refresh(stage, state)
        prefetcher.prepare(state.step)
        if stage.ranks.agree(monitor.step_done(state, values)):
            return False
    return True
