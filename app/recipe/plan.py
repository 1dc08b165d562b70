"""Plan of a job: steps, samples, memory and arithmetic, from its recipe and the number of its samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from app.recipe.data.facts import SampleFacts
from app.recipe.data.sources import Data
from app.recipe.job import JobSpec, Recipe
from app.recipe.tally import Cost

EVAL_BATCH = 256
"""Samples per forward pass of an evaluation."""
LABELS_AT_ONCE = 256
"""Labels whose texts a dual encoder encodes at a time."""
LABEL_PASSES = 4
"""Forward passes that a label's text costs in a step: one, its repetition before the backward pass, and that, which
counts twice."""


class StepCost(NamedTuple):
    """Cost of a micro-batch beside that of its samples."""

    flops: int
    elements: int
    """Elements kept for the backward pass, and their gradients."""


class NetworkCosts(NamedTuple):
    """Costs of a job's networks."""

    student: Cost
    teachers: Sequence[Cost] = ()
    """Teachers that stay as they are."""
    learners: Sequence[Cost] = ()
    """Networks that are trained beside the student: a teacher that learns, and peers."""
    labels: StepCost | None = None
    """Cost of encoding the texts of labels; none: the student does not."""


@dataclass(frozen=True)
class StagePlan:
    """Position of one stage in the optimizer steps of a job."""

    first: int
    """Steps before it."""
    steps: int
    steps_per_epoch: int

    @property
    def end(self) -> int:
        """Steps done at its end."""
        return self.first + self.steps

    @property
    def epochs(self) -> float:
        """Its length in epochs."""
        return self.steps / self.steps_per_epoch


@dataclass(frozen=True)
class TrainingPlan:
    """Stages and steps of the training."""

    train_samples: int
    batch_size: int
    steps_per_epoch: int
    stages: tuple[StagePlan, ...]
    """In the order of `Recipe.all_stages`."""

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return self.stages[-1].end

    def stage_at(self, step: int) -> int:
        """Index of the stage of the step after `step` steps; of the last one if all are done."""
        return min(bisect_right([stage.end for stage in self.stages], step), len(self.stages) - 1)

    def epoch_at(self, step: int) -> float:
        """Epochs done after `step` optimizer steps, with fraction."""
        return step / self.steps_per_epoch

    def samples_until(self, step: int) -> int:
        """Samples seen after `step` optimizer steps; the last batch of an epoch may be smaller."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.train_samples + min(rest * self.batch_size, self.train_samples)


def plan_training(recipe: Recipe, train_samples: int) -> TrainingPlan:
    """Lay out `recipe` over `train_samples` samples (after the hold-out)."""
    steps_per_epoch = -(-train_samples // recipe.batch_size)
    lengths = [steps_per_epoch * stage.epochs for stage in recipe.all_stages]
    lengths[-1] = min(lengths[-1], recipe.max_steps or lengths[-1]) if recipe.method.trains else 0
    starts = accumulate(lengths, initial=0)
    stages = tuple(StagePlan(first, steps, steps_per_epoch) for first, steps in zip(starts, lengths, strict=False))
    return TrainingPlan(train_samples, recipe.batch_size, steps_per_epoch, stages)


def split_counts(data: Data, samples: int) -> tuple[int, int]:
    """Samples of `data.train` that are (trained on, held out); none are held out if `data.eval` is given."""
    if not data.holds_out:
        return samples, 0
    held_out = min(max(round(samples * data.eval_fraction), 1), samples - 1)
    return samples - held_out, held_out


def kept_back_count(recipe: Recipe, samples: int) -> int:
    """Samples that the method keeps back of `samples` to train on (after the hold-out)."""
    share = recipe.method.kept_back
    return min(max(round(samples * share), 1), samples - 1) if share else 0


def held_out_count(data: Data, train: SampleFacts | None, held_out: SampleFacts | None) -> int | None:
    """Number of evaluation samples; None: unknown so far."""
    if not data.holds_out:
        return held_out.count if held_out else None
    return split_counts(data, train.count)[1] if train else None


def training_flops(plan: TrainingPlan, recipe: Recipe, costs: NetworkCosts, rows_per_sample: int = 1) -> int:
    """Floating-point operations of the whole training: a sample takes as many forward passes of each network that is
    trained as the method says, and one of each teacher; a backward pass counts twice. Labels are encoded for every
    micro-batch. `rows_per_sample`: see `TaskSpec.rows_per_sample`."""
    trained = costs.student.training_flops(recipe.method.passes(recipe))
    trained += recipe.method.learner_passes(recipe) * sum(learner.flops for learner in costs.learners)
    per_sample = trained + sum(teacher.flops for teacher in costs.teachers)
    of_labels = costs.labels.flops * recipe.accumulate * plan.total_steps if costs.labels else 0
    return per_sample * rows_per_sample * recipe.views * plan.samples_until(plan.total_steps) + of_labels


def model_memory(job: JobSpec, costs: NetworkCosts, samples: int) -> tuple[int, int]:
    """Bytes of weights with gradients and optimizer state, and of activations, in all processes together."""
    recipe, resources = job.recipe, job.resources
    copies = 2 + (recipe.ema_decay is not None)
    micro_batch = -(-min(recipe.batch_size, samples) // (recipe.accumulate * resources.processes))
    weights, elements = 0, round(costs.student.activations * recipe.method.activation_copies(recipe))
    optimizers = [recipe.optimizer] + [recipe.method.learner_optimizer(recipe)] * len(costs.learners)
    for network, optimizer in zip((costs.student, *costs.learners), optimizers, strict=True):
        trained = network.parameters - network.frozen_parameters
        weights += trained * copies + optimizer.state_size(trained, network.hidden_weights)
        weights += network.frozen_parameters * (copies - 1)
    of_learners = [learner.activations for learner in costs.learners]
    elements = max([elements, *of_learners]) if recipe.method.learns_in_turn else sum(of_learners, elements)
    micro_batch *= recipe.views * job.task_spec.rows_per_sample(job.data)
    elements = micro_batch * elements + (costs.labels.elements if costs.labels else 0)
    activations = elements * (2 if recipe.precision == "bf16" else 4)
    for teacher in costs.teachers:
        weights += teacher.parameters
        activations += 4 * micro_batch * teacher.peak_activation
    wholes = 1 if resources.sharding == "fsdp" else resources.processes
    return 4 * weights * wholes, activations * resources.processes
