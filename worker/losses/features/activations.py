"""Reads features from `LossInputs`, and brings those of student and teacher to a common shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.features import Reduction
from app.recipe.losses.taps import Pair, Tap
from worker.losses.base import LossInputs
from worker.tensors import at_least_float32


def of_student(inputs: LossInputs, tap: Tap) -> Tensor:
    """The student's feature (B, ...) at `tap`, in at least float32."""
    return at_least_float32(inputs.features.student[tap])


def of_teacher(inputs: LossInputs, tap: Tap) -> Tensor:
    """The teacher's feature (B, ...) at `tap`, in at least float32, detached unless the teacher learns; raises
    ValueError when `inputs` has none."""
    if tap not in inputs.features.teacher:
        raise ValueError("this term needs a teacher's features")
    feature = at_least_float32(inputs.features.teacher[tap])
    return feature if inputs.teacher_learns else feature.detach()


def both(inputs: LossInputs, pair: Pair) -> tuple[Tensor, Tensor]:
    """Student's and teacher's feature (B, ...) of `pair`, in at least float32."""
    return of_student(inputs, pair.student), of_teacher(inputs, pair.teacher)


def both_vectors(inputs: LossInputs, pair: Pair, reduction: Reduction) -> tuple[Tensor, Tensor]:
    """Student's and teacher's feature of `pair`, reduced to vectors (B, D) in at least float32."""
    student, teacher = both(inputs, pair)
    return (
        vectors(student, reduction, inputs.features.student_tokens),
        vectors(teacher, reduction, inputs.features.teacher_tokens),
    )


def vectors(feature: Tensor, reduction: Reduction, tokens: Tensor | None) -> Tensor:
    """One vector (B, D) for each row of a floating feature: the mean of a map; the first or the mean of tokens.

    `tokens` (B, S) bool: tokens that aren't padding; padding is left out of the mean.
    """
    if feature.ndim == 2:
        return feature
    if feature.ndim == 4:
        return feature.mean((2, 3))
    if reduction == "first":
        return feature[:, 0]
    if tokens is None or tokens.shape != feature.shape[:2]:  # patches of an image, or features after a pooling
        return feature.mean(1)
    counted = tokens.unsqueeze(-1)
    return feature.where(counted, 0.0).sum(1) / counted.sum(1).clamp(min=1)


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two floating maps (B, C, H, W), each averaged down to the smaller height and the smaller width; other tensors are
    returned unchanged."""
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    height, width = (min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return shrink(student, height, width), shrink(teacher, height, width)


def shrink(feature: Tensor, height: int, width: int) -> Tensor:
    """A map (B, C, H, W), floating, averaged down to (B, C, height, width), which is not larger."""
    return feature if feature.shape[2:] == (height, width) else F.adaptive_avg_pool2d(feature, (height, width))


def channel_axis(rank: int) -> int:
    """Axis of the width: the last one of vectors and tokens, the second one of maps."""
    return 2 if rank == 3 else 1


def width_of(shape: torch.Size) -> int:
    """Width of a feature, from its shape with the batch axis."""
    return shape[channel_axis(len(shape))]


def along_channels(values: Tensor, rank: int) -> Tensor:
    """`values` (C,) reshaped to broadcast over a feature of `rank` axes, in their dtype."""
    shape = [1] * rank
    shape[channel_axis(rank)] = -1
    return values.view(shape)


def row_shares(rows: int, valid: Tensor | None, like: Tensor) -> Tensor:
    """Weights (B,), in the dtype of `like`, of a mean over the `valid` rows (B,) bool; all 0 if none is valid."""
    counted = like.new_ones(rows) if valid is None else valid.to(like.dtype)
    return counted / counted.sum().clamp(min=1)


def describe(shape: torch.Size) -> str:
    """A feature's shape without its batch axis, as text."""
    sides = " x ".join(str(side) for side in shape[1:])
    return {2: f"vectors of {sides}", 3: f"tokens of {sides}", 4: f"maps of {sides}"}.get(len(shape), f"shape {sides}")
