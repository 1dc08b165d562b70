"""How much work a job is: steps, samples, memory and arithmetic, from its recipe and the number of its samples."""

from __future__ import annotations

from dataclasses import dataclass

from app.recipe.cost import Cost, student_cost
from app.recipe.data import ImageData
from app.recipe.job import JobSpec, Recipe
from app.recipe.model import ImageInput, ModelConfig
from app.recipe.optimizers import AdamP, AdamW, Optimizer, Sgd

EVAL_BATCH = 256
"""Samples per forward pass of an evaluation."""


@dataclass(frozen=True)
class TrainingPlan:
    """How training is laid out over optimizer steps."""

    train_samples: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int

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
    steps = steps_per_epoch * recipe.epochs
    return TrainingPlan(train_samples, recipe.batch_size, steps_per_epoch, min(steps, recipe.max_steps or steps))


def split_counts(data: ImageData, samples: int) -> tuple[int, int]:
    """Samples of `data.train` that are (trained on, held out); nothing is held out when `data.eval` is given."""
    if data.eval is not None:
        return samples, 0
    held_out = min(max(round(samples * data.eval_fraction), 1), samples - 1)
    return samples - held_out, held_out


def training_flops(plan: TrainingPlan, student: Cost, teacher: Cost | None) -> int:
    """Floating-point operations of the whole training: the backward pass counts twice the forward pass."""
    per_sample = 3 * student.flops + (teacher.flops if teacher else 0)
    return per_sample * plan.samples_until(plan.total_steps)


def training_memory(
    job: JobSpec, image: ImageInput, classes: int, samples: int, pixel_bytes: int, teacher: ModelConfig | None = None
) -> int:
    """Bytes that training holds at its peak, roughly: weights, gradients, optimizer state, activations, data.

    `samples` counts training and evaluation together, `pixel_bytes` is 1 for uint8 images and 4 for all others. What
    the framework itself takes is not counted.
    """
    student = student_cost(job.student, image, classes)
    copies = 2 + _state_copies(job.recipe.optimizer) + (job.recipe.ema_decay is not None)
    pixels = image.channels * image.height * image.width
    micro_batch = -(-min(job.recipe.batch_size, samples) // job.recipe.accumulate)
    total = 4 * student.parameters * copies
    total += micro_batch * student.activations * (2 if job.recipe.precision == "bf16" else 4)
    total += samples * (pixels * pixel_bytes + 8)
    if teacher is not None:
        cost = student_cost(teacher.architecture, teacher.input, teacher.classes)
        total += 4 * cost.parameters + 4 * micro_batch * cost.peak_activation
    return total


def _state_copies(optimizer: Optimizer) -> int:
    if isinstance(optimizer, AdamW | AdamP):
        return 2
    return int(optimizer.momentum > 0) if isinstance(optimizer, Sgd) else 1
