"""Adversarial training (1706.06083), alone or balanced between a clean and a robust teacher (2306.16170).

B rows of a micro-batch, C classes. There are two sides: `robust`, the attacked images and the teacher that runs on
them, and `clean`, the images as they are and theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.methods.adversarial import Adversarial
from app.recipe.methods.base import LEARNING
from worker.data.batches import Batch
from worker.kernels.log_probs import entropy, kl, log_probs
from worker.losses.base import target_column
from worker.losses.objective import TOTAL
from worker.methods.attacked_batches import attack_batches, attack_figures, require_pixel_range
from worker.methods.base import Method
from worker.optimizers.schedules import rate_factor
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.teachers import TeacherSource
from worker.tensors import IGNORED, at_least_float32
from worker.training.attacks import Logits, Raised, cross_entropy_with
from worker.training.loop import (
    GRAD_NORM,
    Stage,
    Step,
    accumulate_gradients,
    objective_shares,
    run_student,
    update_student,
)
from worker.training.stages import open_teacher
from worker.training.state import MethodState, TrainState
from worker.training.step_inputs import Signals, StepInputs

ROBUST, CLEAN = SIDES = ("robust", "clean")
ACCURACY, ROBUST_ACCURACY = "accuracy", "robust_accuracy"
"""Metrics of a step: accuracies on its batch, as it is and attacked."""
SMOOTHING = 1e-5
"""Added to a teacher's probabilities in the logarithm by the authors' code."""
TEMPERATURES = (1.0, 10.0)
"""Bounds of a teacher's temperature."""
BySide = dict[str, float]


class AdversarialState(MethodState):
    """Balance between the teachers, by side; constant without teachers."""

    temperatures: BySide = {}
    """Temperatures of the teachers; empty before the first step."""
    weights: BySide = {ROBUST: 0.5, CLEAN: 0.5}
    first: BySide = {}
    """Divergences of the first step, which later ones are divided by."""


class AdversarialMethod(Method[Adversarial]):
    """See `Adversarial`."""

    State = AdversarialState

    def step(self, stage: Stage, state: TrainState) -> Step:
        """Raises UserError (`invalid_job`) for images whose pixels have no known range."""
        require_pixel_range(stage, state.student)
        robust = None
        if self.spec.robust_teacher is not None:
            name = self.spec.robust_teacher
            robust = open_teacher(self.inputs.teachers[name], self.inputs.job, name).source
        balance = _state(state)
        if not balance.temperatures:
            balance.temperatures = dict.fromkeys(SIDES, self.spec.temperature)
        return AdversarialStep(self.spec, robust)

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        recipe, robust = self.inputs.job.recipe, self.spec.robust_teacher
        found = {"student": samples * (self.spec.passes(recipe) - LEARNING) * self.inputs.student_flops}
        if robust is not None:
            found["teacher"] = samples * network_cost(self.inputs.teachers[robust].config).flops
        return found

    def figures(self, state: TrainState) -> dict[str, Any]:
        """The attack, and the final balance."""
        balance = _state(state)
        attack = attack_figures(self.spec)
        if self.spec.robust_teacher is None:
            return {"attack": attack}
        return {"attack": attack, "balance": {"weights": balance.weights, "temperatures": balance.temperatures}}


class TeacherRows(NamedTuple):
    """Values of one side's teacher for each row (B,)."""

    divergence: Tensor
    """Of the teacher at its temperature from the student."""
    entropy: Tensor
    """Of the teacher at its temperature, without gradient."""


class _Views(NamedTuple):
    """A micro-batch on both sides."""

    batches: Mapping[str, Batch]
    """By side; without teachers only the robust one is used."""
    teachers: Mapping[str, Tensor]
    """Logits (B, C) of each side's teacher on its images; empty without teachers."""


class _Moment(NamedTuple):
    """Values that are constant within a step."""

    stage: Stage
    state: TrainState
    rows: Tensor
    """Rows of the whole batch that count, a scalar."""
    epoch: float
    temperatures: BySide
    """Temperatures of the teachers in this step; the balance computes those of the next one."""


class AdversarialStep:
    """One optimizer step on a batch that is attacked first.

    The student learns in training mode, on the attacked images and then, with teachers, on the clean ones, each a pass
    of its own (batch norm includes both). A step's divergences use the temperatures from before the step; its weights
    are updated with these divergences first.
    """

    def __init__(self, spec: Adversarial, robust: TeacherSource | None) -> None:
        self._spec, self._robust = spec, robust

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        attacked = attack_batches(self._spec, stage, state, step_inputs, _cross_entropy)
        state.student.train()
        stage.ranks.begin_step(stage.seed, state.step)
        if step_inputs.signals is None:
            step_inputs = replace(
                step_inputs, signals=[stage.teacher_signals(part) for part in step_inputs.micro_batches]
            )
        views, several = self._views(step_inputs, attacked), len(attacked) > 1
        now = _Moment(stage, state, stage.count(step_inputs), stage.epoch_at(state.step), _state(state).temperatures)
        if self._robust is not None and several:
            self._balance(now, self._measure_ahead(now, views))

        def shares(number: int, micro_batch: Batch, signals: Signals) -> dict[str, Tensor]:
            return self._shares(now, views[number], balanced=several)

        values = accumulate_gradients(stage, stage.trainable, step_inputs, shares)
        values[GRAD_NORM] = update_student(stage, state)
        if self._robust is not None:
            values |= _balance_metrics(_state(state), values[TOTAL])
        return values

    def _views(self, step_inputs: StepInputs, attacked: list[Batch]) -> list[_Views]:
        batches = [
            {ROBUST: moved, CLEAN: part} for moved, part in zip(attacked, step_inputs.micro_batches, strict=True)
        ]
        clean = self._spec.clean_teacher
        if self._robust is None or clean is None or step_inputs.signals is None:
            return [_Views(each, {}) for each in batches]
        teachers = [
            {ROBUST: self._robust(each[ROBUST]).logits, CLEAN: signals[clean].logits}
            for each, signals in zip(batches, step_inputs.signals, strict=True)
        ]
        return [_Views(each, logits) for each, logits in zip(batches, teachers, strict=True)]

    def _shares(self, now: _Moment, views: _Views, *, balanced: bool) -> dict[str, Tensor]:
        """See `Shares`; `balanced`: the balance was updated before, with the whole batch."""
        stage, state, count = now.stage, now.state, now.rows
        outputs = run_student(stage, state.student, views.batches[ROBUST], {})
        found = objective_shares(stage, outputs, state.optimizer, count, now.epoch)
        labels, totals = found.pop(TOTAL), []
        if self._spec.label_weight:
            totals.append(self._spec.label_weight * labels)
        hits = {ROBUST_ACCURACY: _hits(outputs.outputs, views.batches[ROBUST]) / count}
        if views.teachers:
            clean = run_student(stage, state.student, views.batches[CLEAN], {}).outputs
            hits[ACCURACY] = _hits(clean, views.batches[CLEAN]) / count
            terms = self._terms(now, views, {ROBUST: outputs.outputs, CLEAN: clean})
            if not balanced:
                self._balance(now, {name: term.detach() for name, term in terms.items()})
            weights = _state(state).weights
            totals += [weights[side] * terms[_divergence(side)] for side in SIDES]
            found |= {_divergence(side): terms[_divergence(side)] for side in SIDES}
        total = sum(totals[1:], totals[0])
        return {TOTAL: total, **found, **{name: value.to(total.dtype) for name, value in hits.items()}}

    def _terms(self, now: _Moment, views: _Views, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A micro-batch's shares of the batch's divergences and entropies, scalars by name; gradients flow to the
        student's `logits` (B, C) of each side."""
        found = {}
        for side in SIDES:
            rows = teacher_rows(logits[side], views.teachers[side], now.temperatures[side], self._spec.scale)
            valid = target_column(views.batches[side].targets).squeeze(-1) != IGNORED
            found[_divergence(side)] = rows.divergence.where(valid, 0).sum() / now.rows
            found[_entropy(side)] = rows.entropy.where(valid, 0).sum() / now.rows
        return found

    def _measure_ahead(self, now: _Moment, views: list[_Views]) -> dict[str, Tensor]:
        """The sums of all micro-batches' `_terms`, by passes without side effects: the gradient of the first one needs
        weights that depend on the last one."""
        student, stage = now.state.student, replace(now.stage, trains_student=False)  # so that no graph is kept
        found: dict[str, Tensor] = {}
        with _no_side_effects(student):
            for each in views:
                logits = {side: run_student(stage, student, each.batches[side], {}).outputs for side in SIDES}
                for name, share in self._terms(now, each, logits).items():
                    found[name] = found[name] + share if name in found else share
        return found

    def _balance(self, now: _Moment, terms: Mapping[str, Tensor]) -> None:
        """Update temperatures and weights with this process's share of a batch's terms (waits for the device)."""
        summed = now.stage.ranks.sum_all(dict(terms))
        values = dict(zip(summed, torch.stack(list(summed.values())).tolist(), strict=True))
        rate = rate_factor(now.stage.schedule, now.state.step - now.stage.plan.first, now.stage.plan)
        balance, spec = _state(now.state), self._spec
        if spec.balance == "temperature-and-loss":
            entropies = {side: values[_entropy(side)] for side in SIDES}
            balance.temperatures = balanced_temperatures(now.temperatures, entropies, spec.temperature_rate * rate)
        divergences = {side: values[_divergence(side)] for side in SIDES}
        balance.first = balance.first or divergences
        balance.weights = balanced_weights(balance.weights, divergences, balance.first, spec.weight_rate * rate)


def teacher_rows(logits: Tensor, teacher: Tensor, temperature: float, scale: str) -> TeacherRows:
    """Of the teacher's distribution, softmax(teacher / temperature), and the student's, softmax(logits), both from
    logits (B, C) of any floating dtype; in float32 or wider. `scale` as in `Adversarial`."""
    student, softened = at_least_float32(logits), at_least_float32(teacher.detach()) / temperature
    if scale == "reference":
        probs = softened.softmax(-1)
        smoothed = (probs + SMOOTHING).log()
        divergence = probs * (smoothed - F.log_softmax(student, dim=-1))
        return TeacherRows(divergence.mean(-1), -(probs * smoothed).mean(-1))
    logs = log_probs(student, softened)
    return TeacherRows(kl(logs.teacher, logs.student), entropy(logs.teacher))


def balanced_temperatures(temperatures: BySide, entropies: BySide, rate: float) -> BySide:
    """Temperatures after a step of `rate` that lowers that of the teacher with the larger entropy and raises the
    other."""
    sign = (entropies[ROBUST] < entropies[CLEAN]) - (entropies[ROBUST] > entropies[CLEAN])
    moved = {ROBUST: temperatures[ROBUST] + rate * sign, CLEAN: temperatures[CLEAN] - rate * sign}
    least, largest = TEMPERATURES
    return {side: min(max(value, least), largest) for side, value in moved.items()}


def balanced_weights(weights: BySide, divergences: BySide, first: BySide, rate: float) -> BySide:
    """Weights, which add up to 1, moved by a share `rate` of the way to those in proportion to what is left of the
    first divergences. Where that is not defined (a divergence of 0 at first, or of 0 on both sides), they stay."""
    if not all(first[side] > 0.0 for side in SIDES):
        return weights
    left = {side: divergences[side] / first[side] for side in SIDES}
    if not sum(left.values()) > 0.0:
        return weights
    moved = {side: max(weights[side] - rate * (weights[side] - left[side] / sum(left.values())), 0.0) for side in SIDES}
    return {side: value / sum(moved.values()) for side, value in moved.items()}


def _state(state: TrainState) -> AdversarialState:
    assert isinstance(state.method, AdversarialState)
    return state.method


def _divergence(side: str) -> str:
    return f"{TOTAL}/{side}"


def _entropy(side: str) -> str:
    return f"entropy/{side}"


def _balance_metrics(balance: AdversarialState, like: Tensor) -> dict[str, Tensor]:
    """Weights and temperatures after a step, as scalars of the dtype and device of `like`."""
    found = {"weight": balance.weights, "temperature": balance.temperatures}
    return {f"{name}/{side}": like.new_tensor(values[side]) for name, values in found.items() for side in SIDES}


def _cross_entropy(logits: Logits, images: Tensor, targets: Tensor) -> Raised:
    """See `Aim`."""
    return cross_entropy_with(targets)


def _hits(logits: Tensor, batch: Batch) -> Tensor:
    """Number of rows whose class is predicted, a scalar."""
    return (logits.argmax(-1, keepdim=True) == target_column(batch.targets)).sum()


@contextmanager
def _no_side_effects(student: Model) -> Iterator[None]:
    """Compute without gradients, and restore the student's buffers and the random state afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in student.buffers()]
    devices = [next(student.parameters()).device] if next(student.parameters()).is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        yield
        for buffer, before in buffers:
            buffer.copy_(before)
