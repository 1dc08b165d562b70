"""Meta distillation: the teacher learns from what its student does in a quiz (MetaDistil, arXiv 2106.04570)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from app.recipe.methods.meta import Meta
from worker.data.batches import Batch, Batches
from worker.data.randomness import derive_seed
from worker.errors import SystemFault
from worker.losses.objective import TOTAL, BatchOutputs
from worker.methods.base import Method
from worker.methods.meta_gradients import MetaGradient, PilotLoss, Weights, finite_difference, second_order
from worker.outputs import TeacherSignal
from worker.protocol import Log
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.recorder import Recorder
from worker.tensors import IGNORED, at_least_float32
from worker.training.flop_counter import BACKWARD
from worker.training.loop import GRAD_NORM, Stage, Step, descend, take_step
from worker.training.stages import open_teacher
from worker.training.state import Learner, TrainState, placeholder_optimizer
from worker.training.step_inputs import Signals, StepInputs

PILOT, QUIZ = f"{TOTAL}/pilot", f"{TOTAL}/quiz"
"""Metrics of a step beside those of the student's: its loss before the pilot update, and the pilot student's
cross-entropy in the quiz."""
FLOPS = "teacher"
"""Name of the teacher among the networks whose operations are counted."""


class MetaMethod(Method[Meta]):
    """See `Meta`."""

    def learners(self) -> dict[str, Learner]:
        """The teacher, by its name; it has no moving average, because it teaches as it is."""
        model = self.inputs.teachers[self._name].requires_grad_(True)
        optimizer, schedule = self.spec.teacher_optimizer, self.spec.teacher_schedule
        return {self._name: Learner(model, None, placeholder_optimizer(), model, optimizer, schedule)}

    def step(self, stage: Stage, state: TrainState) -> Step:
        quiz, seed = self._quiz, derive_seed(self.inputs.seed, "quiz")
        batches = Batches(quiz, self._quiz_batch_size, seed, share=stage.ranks.share)
        found = f"{quiz.samples} of {self.inputs.data.train.samples + quiz.samples} training samples"
        self.inputs.send(Log(message=f"{found} are kept back for the quiz of the teacher"))
        job, model = self.inputs.job, self.inputs.teachers[self._name]
        autocasts = job.teacher_named(self._name).precision is None
        recorder = open_teacher(model, job, self._name).recorder
        return MetaStep(self.spec, self._name, batches, recorder, teacher_autocasts=autocasts)

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        """Of the student for a sample: the pilot update (as a step), and two forward passes, by which the derivative of
        its gradient along a direction is computed, exactly or not; and a step for every quiz sample. Of the teacher
        for a sample: a forward and a backward pass, and after its step another forward pass."""
        passes = state.step * self.spec.quiz_batches / -(-self._quiz.samples // self._quiz_batch_size)
        asked = passes * self._quiz.samples
        student = samples * (1 + BACKWARD + 2) + round(asked) * (1 + BACKWARD)
        teacher = network_cost(self.inputs.teachers[self._name].config).flops * self.inputs.data.train.rows_per_sample
        return {"student": student * self.inputs.student_flops, FLOPS: samples * (1 + BACKWARD + 1) * teacher}

    def figures(self, state: TrainState) -> dict[str, Any]:
        """Samples of the quiz, and the order of the teacher's gradient."""
        return {"meta": {"quiz_samples": self._quiz.samples, "order": self.spec.order, "teacher": self._name}}

    @property
    def _name(self) -> str:
        name = self.inputs.job.trained_teacher
        assert name is not None  # this method trains one
        return name

    @property
    def _quiz(self) -> Batch:
        if self.inputs.data.kept_back is None:
            raise SystemFault("invalid_assignment", "no samples were kept back for the quiz")
        return self.inputs.data.kept_back

    @property
    def _quiz_batch_size(self) -> int:
        return min(self.spec.quiz_batch_size or self.inputs.job.recipe.batch_size, self._quiz.samples)


class MetaStep:
    """One optimizer step of the teacher, then one of the student.

    The teacher runs in evaluation mode throughout, so its batch norm statistics stay as they are. The pilot student
    runs in training mode, with copies of the buffers and with the random numbers that the student's own step draws
    afterwards; nothing of the student changes.
    """

    def __init__(
        self,
        spec: Meta,
        teacher: str,
        quiz: Batches,
        recorder: Recorder | None = None,
        *,
        teacher_autocasts: bool = True,
    ) -> None:
        """`teacher` is the name of the teacher, whose activations `recorder` records for losses on them (none: there
        are no such losses), and whose arithmetic is the student's if `teacher_autocasts`, else fp32."""
        self._spec, self._name, self._quiz, self._teacher_autocasts = spec, teacher, quiz, teacher_autocasts
        self._recorder = recorder

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        state.student.train()
        stage.ranks.begin_step(stage.seed, state.step)
        learner = state.learners[self._name]
        teacher = [parameter for parameter in learner.model.eval().parameters() if parameter.requires_grad]
        found = self._meta_gradient(stage, state, step_inputs, learner.model, teacher)
        for parameter, gradient in zip(teacher, found.gradients, strict=True):
            parameter.grad = gradient
        shares = stage.ranks.sum_all({PILOT: found.pilot, QUIZ: found.quiz})
        norm = descend(stage, learner.optimizer, teacher)
        with torch.no_grad():
            taught = [self._teach(stage, learner.model, each) for each in step_inputs.micro_batches]
        pairs = zip(step_inputs.micro_batches, taught, strict=True)
        signals: list[Signals] = [{self._name: self._signal(learner.model, part, *each)} for part, each in pairs]
        values = take_step(stage, state, replace(step_inputs, signals=signals))
        return {**values, **shares, f"{self._name}/{GRAD_NORM}": norm}

    def _meta_gradient(
        self, stage: Stage, state: TrainState, step_inputs: StepInputs, model: Model, teacher: list[nn.Parameter]
    ) -> MetaGradient:
        trained = {name: weight for name, weight in state.student.named_parameters() if weight.requires_grad}
        pilot = self._pilot(stage, state, step_inputs, model)
        parts = [self._quiz.at(state.step * self._spec.quiz_batches + part) for part in range(self._spec.quiz_batches)]
        counts = [stage.objective.count(part.targets, stage.ranks.sum) for part in parts]

        def quiz(weights: Weights) -> Tensor:
            pairs = zip(parts, counts, strict=True)
            losses = [_cross_entropy(_run(stage, state.student, weights, part), part, count) for part, count in pairs]
            stage.recorder.take()  # activations that no loss uses keep their graph
            return torch.stack(losses).mean()

        def sum_all(values: Sequence[Tensor]) -> list[Tensor]:
            return _sum_all(stage, values)

        if self._spec.order == "second":
            return second_order(trained, [pilot], quiz, teacher, self._spec.pilot_lr, sum_all)
        return finite_difference(trained, pilot, quiz, teacher, self._spec.pilot_lr, sum_all, self._spec.epsilon)

    def _pilot(self, stage: Stage, state: TrainState, step_inputs: StepInputs, model: Model) -> PilotLoss:
        batch, count, epoch = step_inputs.batch, stage.count(step_inputs), stage.epoch_at(state.step)
        tokens = state.student.tokens(batch.inputs[stage.input_key])

        def loss(weights: Weights, taught: Sequence[Tensor]) -> Tensor:
            signals = {self._name: self._signal(model, batch, *taught)}
            student, features = _run(stage, state.student, weights, batch), stage.recorder.take()
            outputs = BatchOutputs(student, batch.targets, signals, features, tokens, teacher_learns=True)
            return stage.objective(outputs, count, epoch, stage.plan.epochs)[TOTAL]

        return PilotLoss(partial(self._teach, stage, model, batch), loss)

    def _signal(self, model: Model, batch: Batch, logits: Tensor, *activations: Tensor) -> TeacherSignal:
        """What `_teach` returned, as a signal."""
        taps = self._recorder.taps if self._recorder else ()
        tokens = model.tokens(batch.inputs[model.input_key])
        return TeacherSignal(logits, features=dict(zip(taps, activations, strict=True)), tokens=tokens)

    def _teach(self, stage: Stage, model: Model, batch: Batch) -> list[Tensor]:
        """Logits (B, ...) of the teacher, and its activations (B, ...) at the recorder's taps."""
        bf16 = stage.recipe.precision == "bf16" and self._teacher_autocasts
        with torch.autocast(stage.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = model(batch.inputs[model.input_key])
        return [logits, *(self._recorder.take().values() if self._recorder else ())]


def _run(stage: Stage, student: Model, weights: Weights, batch: Batch) -> Tensor:
    """Logits (B, ...) of the student with other weights, which leave its buffers and the random state as they are.

    Attention takes the form in plain operations: the gradients of fused kernels can't be differentiated.
    """
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    samples = batch.inputs[stage.input_key]
    bf16 = torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.recipe.precision == "bf16")
    devices = [stage.device] if stage.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), sdpa_kernel(SDPBackend.MATH), bf16:
        logits: Tensor = functional_call(student, {**weights, **buffers}, (samples,))
    return logits


def _cross_entropy(logits: Tensor, batch: Batch, count: Tensor) -> Tensor:
    """Share of the cross-entropy of logits (B, C), or (B, S, C) of tokens, in a mean over `count` rows."""
    rows, classes = at_least_float32(logits).flatten(0, -2), batch.targets.flatten()
    return F.cross_entropy(rows, classes, ignore_index=IGNORED, reduction="sum") / count


def _sum_all(stage: Stage, values: Sequence[Tensor]) -> list[Tensor]:
    """Sums of floating tensors over all processes, in one exchange."""
    if stage.ranks.size == 1 or not values:
        return list(values)
    summed = stage.ranks.sum(torch.cat([value.flatten() for value in values]))
    parts = torch.split(summed, [value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]
