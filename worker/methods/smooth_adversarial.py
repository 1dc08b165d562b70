"""Smooth adversarial training (2304.07288): margins that change little within the bound of an attack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from app.recipe.methods.base import LEARNING
from app.recipe.methods.smooth_adversarial import SmoothAdversarial
from worker.data.batches import Batch
from worker.losses.base import target_column
from worker.losses.objective import TOTAL
from worker.methods.attacked_batches import attack_batches, attack_figures, require_pixel_range
from worker.methods.base import Method
from worker.tensors import IGNORED, at_least_float32
from worker.training.attacks import Logits, Raised
from worker.training.loop import (
    GRAD_NORM,
    Stage,
    Step,
    accumulate_gradients,
    objective_shares,
    run_student,
    update_student,
)
from worker.training.state import TrainState
from worker.training.step_inputs import Signals, StepInputs

SMOOTHNESS = f"{TOTAL}/smoothness"
"""Metric: mean change of the margins, before its weight."""


class SmoothAdversarialMethod(Method[SmoothAdversarial]):
    """See `SmoothAdversarial`."""

    def step(self, stage: Stage, state: TrainState) -> Step:
        """Raises UserError (`invalid_job`) for images whose pixels have no known range."""
        require_pixel_range(stage, state.student)
        return SmoothAdversarialStep(self.spec)

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        more = self.spec.passes(self.inputs.job.recipe) - LEARNING
        return {"student": samples * more * self.inputs.student_flops}

    def figures(self, state: TrainState) -> dict[str, Any]:
        """The attack."""
        return {"attack": attack_figures(self.spec)}


class SmoothAdversarialStep:
    """One optimizer step. The student learns in training mode from the images as they are and from the attacked ones,
    each a pass of its own (batch norm includes both)."""

    def __init__(self, spec: SmoothAdversarial) -> None:
        self._spec = spec

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        attacked, student = attack_batches(self._spec, stage, state, step_inputs, change_of_margins), state.student
        student.train()
        stage.ranks.begin_step(stage.seed, state.step)
        count, epoch = stage.count(step_inputs), stage.epoch_at(state.step)

        def shares(number: int, micro_batch: Batch, signals: Signals) -> dict[str, Tensor]:
            outputs = run_student(stage, student, micro_batch, signals)
            found = objective_shares(stage, outputs, state.optimizer, count, epoch)
            moved = run_student(stage, student, attacked[number], {}).outputs
            found[SMOOTHNESS] = smoothness(moved, outputs.outputs, micro_batch.targets).sum() / count
            found[TOTAL] = found[TOTAL] + self._spec.smoothness_weight * found[SMOOTHNESS]
            return found

        values = accumulate_gradients(stage, stage.trainable, step_inputs, shares)
        values[GRAD_NORM] = update_student(stage, state)
        return values


def change_of_margins(logits: Logits, images: Tensor, targets: Tensor) -> Raised:
    """See `Aim`: the change of the margins from those of the images as they are, which are constant."""
    with torch.no_grad():
        clean = logits(images)
    return lambda moved: smoothness(moved, clean, targets).sum()


def smoothness(moved: Tensor, clean: Tensor, targets: Tensor) -> Tensor:
    """||D' - D||_2 of each row (B,), float32 or float64, from `moved` and `clean` logits (B, C) of any floating dtype,
    with D_k = f_y - f_k and y by `targets`, (B,) int64 or probabilities (B, C). Ignored rows, and those in which
    nothing changes, are 0 without a gradient."""
    change = at_least_float32(moved) - at_least_float32(clean)
    label = target_column(targets)
    valid = label.squeeze(-1) != IGNORED
    margins = change.gather(-1, label.clamp(min=0)) - change
    found: Tensor = torch.linalg.vector_norm(margins.where(valid.unsqueeze(-1), 0.0), dim=-1)
    return found
