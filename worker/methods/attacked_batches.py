"""Attacks of the student on the batches that it learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from app.recipe.attacks import AttackSpec
from app.recipe.methods.base import FIELD
from worker.data.batches import Batch
from worker.data.randomness import derive_seed
from worker.errors import UserError
from worker.students.model import Model
from worker.training.attacks import Logits, Raised, pgd, start_noise
from worker.training.loop import Stage
from worker.training.state import TrainState
from worker.training.step_inputs import StepInputs

Aim = Callable[[Logits, Tensor, Tensor], Raised]
"""What an attack raises, by the student in evaluation mode, the images and their targets."""


def attack_figures(attack: AttackSpec) -> dict[str, Any]:
    """The attack, for the report."""
    return {name: getattr(attack, name) for name in ("steps", "step_size", "bound", "random_start")}


def require_pixel_range(stage: Stage, student: Model) -> None:
    """Raises UserError (`invalid_job`) for images whose pixels have no known range."""
    if not student.in_pixel_range(stage.batches.samples.inputs[stage.input_key]):
        found = (
            f"has pixels outside of 0 to {student.highest_pixel:g}, so that {FIELD}.bound is no share of their range"
        )
        raise UserError("invalid_job", f"data.train: {found}; accepted: uint8, or numbers from 0 to 1", "data.train")


def attack_batches(
    attack: AttackSpec, stage: Stage, state: TrainState, step_inputs: StepInputs, aim: Aim
) -> list[Batch]:
    """The micro-batches with attacked images; the student is in evaluation mode afterwards.

    Starting points are drawn for the whole batch, of which every process takes its share, so that they depend on seed
    and step only.
    """
    student, key = state.student.eval(), stage.input_key
    highest, images = student.highest_pixel, step_inputs.batch.inputs[key]
    shape = torch.Size([stage.batches.size_at(state.step), *images.shape[1:]])
    seed = derive_seed(stage.seed, "attack", state.step)
    noise = start_noise(attack, shape, highest, seed, stage.device)
    own = None if noise is None else stage.ranks.share(noise)
    logits = partial(_logits, stage, student)
    attacked, first = [], 0
    for part in step_inputs.micro_batches:
        begin = None if own is None else own[first : first + len(part)]
        moved = pgd(logits, part.inputs[key], aim(logits, part.inputs[key], part.targets), attack, highest, begin)
        attacked.append(replace(part, inputs={**part.inputs, key: moved}))
        first += len(part)
    return attacked


def _logits(stage: Stage, student: Model, images: Tensor) -> Tensor:
    """Logits (B, C) in the arithmetic of the recipe."""
    with torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.recipe.precision == "bf16"):
        found: Tensor = student(images)
    return found
