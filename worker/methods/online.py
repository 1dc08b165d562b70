"""Online distillation: student and teacher learn together (BD-KD, arXiv 2212.12965)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from app.recipe.methods.base import FIELD, STUDENT
from app.recipe.methods.online import Online
from app.recipe.students.model import ModelConfig
from app.recipe.teachers.teacher import TeacherShare
from worker.data.batches import Batch
from worker.data.randomness import derive_seed
from worker.errors import UserError
from worker.limits import Subject, reading
from worker.losses.builder import LossBuilder, TeacherSide
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.methods.base import Method
from worker.methods.batch_accuracy import ACCURACY, accuracy_share
from worker.outputs import TeacherSignal
from worker.students.measure import network_cost
from worker.students.model import Model, last_layer
from worker.students.recorder import Recorder
from worker.training.ema import Ema
from worker.training.flop_counter import BACKWARD
from worker.training.job_inputs import BUILDING_SECONDS, WHOLE_MACHINE
from worker.training.loop import GRAD_NORM, Stage, Step, descend, objective_shares, run_student
from worker.training.stages import require_matches
from worker.training.state import Learner, TrainState, fresh_learner, fresh_student
from worker.training.step_inputs import Signals, StepInputs

FLOPS = "teacher"
"""Name of the trained teacher among the networks whose operations are counted."""


class OnlineMethod(Method[Online]):
    """See `Online`."""

    def learners(self) -> dict[str, Learner]:
        """The teacher, by its name: as it is stored, or with weights drawn from a seed of its own."""
        model = self.inputs.teachers.get(self._name) or self._fresh()
        model.requires_grad_(True)
        return {
            self._name: fresh_learner(
                self.inputs.job.recipe, model, self.spec.teacher_optimizer, self.spec.teacher_schedule
            )
        }

    def step(self, stage: Stage, state: TrainState) -> Step:
        """Build the step; raises UserError (`invalid_job`) for losses with modules, and for groups of the teacher's
        optimizer that match none of its parameters."""
        teacher = state.learners[self._name].model
        if self.spec.teacher_optimizer is not None:
            require_matches({f"{FIELD}.teacher_optimizer": self.spec.teacher_optimizer}, teacher, "the teacher")
        side = TeacherSide(state.student.network, {}, outputs=state.student.config.outputs)
        builder = LossBuilder({}, {STUDENT: side}, teacher.config.outputs, stage.seed)
        path = f"{FIELD}.losses"
        objective = type(stage.objective)(self.spec.losses, builder, [TeacherShare(STUDENT)], path=path)
        for field, each in (("recipe.losses", stage.objective), (path, objective)):
            if list(each.trained) or list(each.frozen):
                message = f"{field}: {FIELD}: online allows no loss with modules; accepted: losses without"
                raise UserError("invalid_job", message, field)
        return OnlineStep(self._name, objective, has_accuracy=self.inputs.job.task_spec.answers == "classes")

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        each = network_cost(state.learners[self._name].model.config).flops * self.inputs.data.train.rows_per_sample
        return {FLOPS: samples * (1 + BACKWARD) * each}

    @property
    def _name(self) -> str:
        name = self.inputs.job.trained_teacher
        assert name is not None  # this method trains one
        return name

    def _fresh(self) -> Model:
        """A teacher with random weights, which reads what the student reads."""
        seed, student = self.spec.seed, self.inputs.student
        seed = derive_seed(self.inputs.seed, "online-teacher") if seed is None else seed
        teacher = Subject(f"the teacher of {FIELD}", "invalid_architecture", f"{FIELD}.teacher")
        with torch.random.fork_rng(devices=[]), reading(teacher, WHOLE_MACHINE, BUILDING_SECONDS):
            model = fresh_student(self._config, seed).to(next(student.parameters()).device)
        model.input_key = student.input_key
        return model

    @property
    def _config(self) -> ModelConfig:
        """Config of a teacher with random weights."""
        assert self.spec.teacher is not None  # by the contract, of a job without a teacher
        return self.inputs.data.model.model_copy(update={"architecture": self.spec.teacher})


class _Side(NamedTuple):
    """One of the two networks, as the other learns from it."""

    name: str
    """What the other's losses call it."""
    prefix: str
    """How the names of its metrics begin."""
    stage: Stage
    """The stage that trains it."""
    model: Model
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    head: nn.Linear | None
    """Its last layer."""

    def signals(self, logits: Tensor) -> Signals:
        """Its logits (B, ...) as a constant for the other side."""
        return {self.name: TeacherSignal(logits.detach(), None if self.head is None else self.head.weight.detach())}


class OnlineStep:
    """One optimizer step of student and teacher, in training mode, from one forward pass of each."""

    def __init__(self, teacher: str, objective: Objective, *, has_accuracy: bool) -> None:
        """`teacher` is its name, and `objective` its losses, in which the student is the teacher."""
        self._teacher, self._objective, self._has_accuracy = teacher, objective, has_accuracy

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        student, teacher = self._sides(stage, state)
        for side in (student, teacher):
            side.model.train()
        stage.ranks.begin_step(stage.seed, state.step)
        count, epoch = stage.count(step_inputs), stage.epoch_at(state.step)
        sums: dict[str, Tensor] = {}
        for micro_batch in step_inputs.micro_batches:
            last = micro_batch is step_inputs.micro_batches[-1]
            with (
                stage.ranks.micro_batch(student.stage.trainable, last=last),
                stage.ranks.micro_batch(teacher.stage.trainable, last=last),
            ):
                own, taught = _logits(student, micro_batch), _logits(teacher, micro_batch)
                targets = micro_batch.targets
                found = {
                    **self._learn(student, BatchOutputs(own, targets, teacher.signals(taught)), count, epoch),
                    **self._learn(teacher, BatchOutputs(taught, targets, student.signals(own)), count, epoch),
                }
            sums = {name: sums[name] + value if sums else value for name, value in found.items()}
        values = stage.ranks.sum_all(sums)
        for side in (student, teacher):
            values[f"{side.prefix}{GRAD_NORM}"] = descend(side.stage, side.optimizer, list(side.model.parameters()))
            if side.ema is not None:
                side.ema.update(side.model, state.step + 1, stage.ranks.local)
        return values

    def _sides(self, stage: Stage, state: TrainState) -> tuple[_Side, _Side]:
        """The student, and the teacher."""
        learner = state.learners[self._teacher]
        model = learner.model
        teaching = replace(
            stage,
            objective=self._objective,
            forward=model,
            recorder=Recorder(model.network, ()),
            input_key=model.input_key,
            trainable=learner.trainable,
        )
        student = _Side(STUDENT, "", stage, state.student, state.optimizer, state.ema, last_layer(state.student))
        optimizer, head, prefix = learner.optimizer, last_layer(model), f"{self._teacher}/"
        return student, _Side(self._teacher, prefix, teaching, model, optimizer, learner.ema, head)

    def _learn(self, side: _Side, outputs: BatchOutputs, count: Tensor, epoch: float) -> dict[str, Tensor]:
        """Run the backward pass of one side for a micro-batch of a batch with `count` valid rows; its shares of the
        batch's metrics, floating scalars by name."""
        found = objective_shares(side.stage, outputs, side.optimizer, count, epoch)
        found[TOTAL].backward()  # type: ignore[no-untyped-call]
        if self._has_accuracy:
            found[ACCURACY] = accuracy_share(outputs.outputs, outputs.targets, count)
        return {f"{side.prefix}{name}": value.detach() for name, value in found.items()}


def _logits(side: _Side, micro_batch: Batch) -> Tensor:
    """Logits (B, ...) of one side, with a graph, from within its wrapper."""

    def compute() -> Tensor:
        return run_student(side.stage, side.model, micro_batch, {}).outputs

    found: Tensor = side.stage.trainable(compute)
    return found
