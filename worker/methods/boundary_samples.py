"""Knowledge transfer with boundary supporting samples (arXiv 1805.05532).

B samples of a batch, n moved ones, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from app.recipe.methods.base import FIELD
from app.recipe.methods.boundary_samples import BoundarySamples
from worker.data.batches import Batch
from worker.data.randomness import generator
from worker.distributed.ranks import SingleProcess
from worker.errors import UserError
from worker.losses.objective import TOTAL
from worker.methods.base import Method
from worker.students.boundary import search_boundary, search_settings
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.teachers import InProcessTeacher
from worker.tensors import IGNORED
from worker.training.flop_counter import BACKWARD
from worker.training.loop import (
    GRAD_NORM,
    Stage,
    Step,
    accumulate_gradients,
    objective_shares,
    run_student,
    update_student,
)
from worker.training.state import MethodState, TrainState
from worker.training.step_inputs import Signals, StepInputs

IMITATION, BOUNDARY = f"{TOTAL}/imitation", f"{TOTAL}/boundary"
"""Metrics: the softened cross-entropy with the teacher, before its weight, on the batch and on the moved samples."""
IMITATION_WEIGHT, BOUNDARY_WEIGHT = "boundary/kd_weight", "boundary/bss_weight"
BASE, MOVED, CROSSED = "boundary/base", "boundary/moved", "boundary/crossed"
"""Metrics of a step that moves samples: those that both sides classify correctly, those of them that were moved, and
those that left their class for another."""
NOT_BASE = -1.0


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """-sum softmax(t / T) log softmax(s / T) of each row (B,), in float32 or wider, from logits (B, C) of any floating
    dtype; no gradient goes to the teacher."""
    wide = torch.promote_types(student.dtype, torch.float32)
    target = (teacher.detach().to(wide) / temperature).softmax(-1)
    return -(target * (student.to(wide) / temperature).log_softmax(-1)).sum(-1)


def base_scores(student: Tensor, teacher: Tensor, classes: Tensor) -> Tensor:
    """Of each sample (B,) the squared differences between both sides' probabilities for all but its own class, summed;
    `NOT_BASE` where one of them predicts another class. Logits are (B, C), `classes` (B,) int64."""
    right = (student.argmax(-1) == classes) & (teacher.argmax(-1) == classes)
    wide = torch.promote_types(student.dtype, torch.float32)
    squares = (teacher.to(wide).softmax(-1) - student.to(wide).softmax(-1)).square()
    own = squares.gather(1, classes.clamp(min=0).unsqueeze(1)).squeeze(1)
    return (squares.sum(-1) - own).clamp(min=0).where(right, NOT_BASE)


def choose_base(scores: Tensor, most: int) -> Tensor:
    """Positions (n,) of the base samples among `base_scores` (B,), in their order; of more than `most` those with the
    largest scores, by these."""
    base = (scores != NOT_BASE).nonzero().squeeze(1)
    if len(base) <= most:
        return base
    return base[scores[base].sort(descending=True, stable=True).indices[:most]]


def draw_classes(teacher: Tensor, base: Tensor, uniform: Tensor) -> Tensor:
    """Classes (n,) int64 to move samples to, drawn from the teacher's probabilities of all but the class `base` (n,):
    in descending order the first whose cumulated probability reaches `uniform` (n,) times their sum."""
    wide = torch.promote_types(teacher.dtype, torch.float32)
    others = teacher.to(wide).softmax(-1).scatter(1, base.unsqueeze(1), -1.0)
    ordered, classes = (part[:, :-1] for part in others.sort(dim=1, descending=True, stable=True))
    reached = ordered.cumsum(1) >= (ordered.sum(1) * uniform.to(wide)).unsqueeze(1)
    first = reached.to(torch.uint8).argmax(1)  # rounding may leave none reached: then the likeliest
    return classes.gather(1, first.unsqueeze(1)).squeeze(1)


class BoundaryCounter(MethodState):
    """What moving samples took, over all attempts."""

    moved: int = 0
    """Samples that the student learned from at the boundary."""
    crossed: int = 0
    """Of these, those that left their class for another."""
    passes: int = 0
    """Forward and backward passes of the teacher on single samples."""


def counter_of(state: TrainState) -> BoundaryCounter:
    """The counter of a job with this method."""
    assert isinstance(state.method, BoundaryCounter)
    return state.method


class BoundaryMethod(Method[BoundarySamples]):
    """See `BoundarySamples`."""

    State: ClassVar[type[MethodState]] = BoundaryCounter

    def step(self, stage: Stage, state: TrainState) -> Step:
        """Raises UserError (`invalid_job`) for samples that the default bounds would change."""
        (model,) = self.inputs.teachers.values()
        samples = self.inputs.data.train.inputs[model.input_key]
        if self.spec.clip is None and not model.in_pixel_range(samples):
            raise UserError("invalid_job", _out_of_range(samples, model), f"{FIELD}.clip")
        return BoundaryStep(self.spec, model)

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        counter = counter_of(state)
        asked = samples + counter.moved + 2 * counter.passes  # a backward pass without the weights' gradients
        learned = counter.moved * (1 + BACKWARD)
        return {"student": learned * self.inputs.student_flops, "teacher": asked * self._teacher_flops}

    def figures(self, state: TrainState) -> dict[str, Any]:
        counter = counter_of(state)
        share = counter.crossed / max(counter.moved, 1)
        return {"boundary": {"moved": counter.moved, "crossed": counter.crossed, "crossed_share": share}}

    @cached_property
    def _teacher_flops(self) -> int:
        """Of the teacher's forward pass on one sample."""
        (model,) = self.inputs.teachers.values()
        return network_cost(model.config).flops


def _out_of_range(samples: Tensor, model: Model) -> str:
    low, high = float(samples.min()), float(samples.max())
    found = f"is not given, and data.train has values from {low:.4g} to {high:.4g}, not 0 to {model.highest_pixel:.4g}"
    return f"{FIELD}.clip {found}; accepted: [lowest, highest], in the units that the teacher's network is given"


class _Base(NamedTuple):
    """Base samples of a batch."""

    rows: Tensor
    """(n,) int64: those that this process moves, within its share of the batch."""
    uniform: Tensor
    """(n,) of [0, 1), for the classes that they are moved to."""
    found: int
    """Base samples in the whole batch, moved or not."""
    copies: int
    """Processes that have each sample of the batch."""


class _Moved(NamedTuple):
    """The moved samples of this process, without those that got stuck."""

    batch: Batch
    """Raw samples, for the student."""
    predicted: Tensor
    """Logits (n, C) of the teacher."""
    crossed: int
    """Samples that left their class."""
    passes: int
    """Forward and backward passes of the teacher on single samples."""


class BoundaryStep:
    """One optimizer step of the student. Base samples are chosen from the whole batch; the moved ones pass the student
    after the last micro-batch and together with it."""

    def __init__(self, spec: BoundarySamples, teacher: Model) -> None:
        self._spec, self._teacher, self._source = spec, teacher, InProcessTeacher(teacher)
        self._search = search_settings(teacher, spec.steps, spec.alpha, spec.clip)

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        spec, student = self._spec, state.student
        student.train()
        stage.ranks.begin_step(stage.seed, state.step)
        count, epoch = stage.count(step_inputs), stage.epoch_at(state.step)
        weights = self._weights(stage, state.step)
        last = len(step_inputs.micro_batches) - 1
        known: list[tuple[Tensor, Tensor]] = []
        counts: dict[str, float] = {}

        def shares(number: int, micro_batch: Batch, signals: Signals) -> dict[str, Tensor]:
            outputs = run_student(stage, student, micro_batch, signals)
            found = objective_shares(stage, outputs, state.optimizer, count, epoch)
            own, predicted = outputs.outputs, self._source(micro_batch).logits
            rows = soft_cross_entropy(own, predicted, spec.temperature)
            found[IMITATION] = rows.where(_classes(micro_batch.targets) != IGNORED, 0).sum() / count
            found[TOTAL] = found[TOTAL] + weights[IMITATION_WEIGHT] * found[IMITATION]
            known.append((own.detach(), predicted))
            if number == last and weights[BOUNDARY_WEIGHT]:
                found[BOUNDARY], measured = self._boundary(stage, state, step_inputs.batch, known)
                counts.update(measured)
                found[TOTAL] = found[TOTAL] + weights[BOUNDARY_WEIGHT] * found[BOUNDARY]
            return found

        values = accumulate_gradients(stage, stage.trainable, step_inputs, shares)
        values[GRAD_NORM] = update_student(stage, state)
        return values | {name: torch.tensor(value, device=stage.device) for name, value in (weights | counts).items()}

    def _weights(self, stage: Stage, step: int) -> dict[str, float]:
        epoch, epochs = 1 + (step - stage.plan.first) // stage.plan.steps_per_epoch, stage.recipe.epochs
        spec = self._spec
        return {
            IMITATION_WEIGHT: spec.kd_weight.in_epoch(epoch, epochs),
            BOUNDARY_WEIGHT: spec.bss_weight.in_epoch(epoch, epochs),
        }

    def _boundary(
        self, stage: Stage, state: TrainState, batch: Batch, known: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, dict[str, int]]:
        """Share of this process in the mean over all moved samples, and metrics of the whole batch; `known` has logits
        of student and teacher by micro-batch."""
        own, predicted = (torch.cat(side) for side in zip(*known, strict=True))
        classes = _classes(batch.targets)
        scores = base_scores(own, predicted, classes)
        base = _choose(stage, state.step, batch.index, scores, self._spec.attack_size)
        moved = self._move(batch.take(base.rows), predicted[base.rows], classes[base.rows], base.uniform)
        count = len(moved.batch)
        times = 2 if count == 1 else 1  # batch norm can't compute the variance of a single number
        done = stage.ranks.sum(torch.tensor([count, moved.crossed, moved.passes], device=stage.device))
        total, crossed, passes = done.tolist()
        counts = {BASE: base.found, MOVED: total // base.copies, CROSSED: crossed // base.copies}
        _count(counter_of(state), counts[MOVED], counts[CROSSED], passes // base.copies)
        if not count:
            return own.new_zeros((), dtype=torch.float32), counts
        rows = torch.arange(count, device=stage.device).repeat(times)
        outputs = run_student(stage, state.student, moved.batch.take(rows), {}).outputs
        losses = soft_cross_entropy(outputs, moved.predicted[rows], self._spec.temperature)
        return losses.sum() / (total * times), counts

    def _move(self, batch: Batch, predicted: Tensor, classes: Tensor, uniform: Tensor) -> _Moved:
        """`batch` has base samples of `classes` (n,), of which the teacher has `predicted` logits."""
        if not len(batch):
            return _Moved(batch, predicted, 0, 0)
        teacher, key = self._teacher, self._teacher.input_key
        target = draw_classes(predicted, classes, uniform)
        inputs = teacher.normalized(batch.inputs[key])
        found = search_boundary(teacher.forward_normalized, inputs, classes, target, self._search)
        kept = (~found.stuck).nonzero().squeeze(1)
        if not len(kept):  # not every network takes an empty batch
            return _Moved(batch.take(kept), predicted[kept], 0, found.passes)
        inputs = found.inputs[kept]
        with torch.no_grad():
            there = teacher.forward_normalized(inputs)
            crossed = int((there.argmax(-1) != classes[kept]).sum())
            moved = replace(batch.take(kept), inputs={key: teacher.denormalized(inputs)})
        return _Moved(moved, there, crossed, found.passes)


def _choose(stage: Stage, step: int, index: Tensor, scores: Tensor, most: int) -> _Base:
    """Of the whole batch, whose `index` and `scores` (B,) this process has a share of, so that any number of processes
    choose and draw alike."""
    ranks, own = stage.ranks, len(index)
    lengths = _from_all(ranks, index.new_tensor([own]), ranks.number, ranks.size).tolist()
    first, total = sum(lengths[: ranks.number]), sum(lengths)
    numbers, scores = (_from_all(ranks, values, first, total) for values in (index, scores))
    copies = ranks.size if total > own and numbers.tolist() == numbers[:own].tolist() * ranks.size else 1
    if copies > 1:  # a batch of fewer samples than processes, which everybody has
        first, scores = 0, scores[:own]
    chosen = choose_base(scores, most)
    draws = torch.rand(len(scores), generator=generator(stage.seed, "boundary", step)).to(chosen.device)[chosen]
    mine = (chosen >= first) & (chosen < first + own)
    return _Base(chosen[mine] - first, draws[mine], int((scores != NOT_BASE).sum()), copies)


def _from_all(ranks: SingleProcess, own: Tensor, first: int, total: int) -> Tensor:
    """The values (total,) of all processes, of which this one has `own` from place `first` on."""
    values = own.new_zeros(total)
    values[first : first + len(own)] = own
    return ranks.sum(values)


def _count(counter: BoundaryCounter, moved: int, crossed: int, passes: int) -> None:
    counter.moved += moved
    counter.crossed += crossed
    counter.passes += passes


def _classes(targets: Tensor) -> Tensor:
    """(B,) int64 of targets (B,) int64, or of probabilities (B, C) the likeliest."""
    return targets if targets.dtype == torch.int64 else targets.argmax(-1)
