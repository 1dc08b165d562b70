"""Batches of rows for the tests of the kernels, and the objective's values for them."""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from app.recipe import losses as recipe
from app.recipe.losses import Loss
from app.recipe.teachers.teacher import Teacher
from worker.kernels.spec import Divergence, DivergenceKind, RowInputs, RowSpec
from worker.losses.builder import LossBuilder
from worker.losses.objective import BatchOutputs, Objective
from worker.outputs import TeacherSignal
from worker.tensors import IGNORED

LOSS: TypeAdapter[Loss] = TypeAdapter(Loss)
KINDS: tuple[DivergenceKind, ...] = get_args(DivergenceKind)


def batch_of(rows: int, student: int, teacher: int, seed: int, masked: bool = True) -> RowInputs:
    """Float32 inputs of so many rows and columns; from the second row on one is ignored, and with `masked` some columns
    of either side are masked, never a label's."""
    generator = torch.Generator().manual_seed(seed)
    own, other = (torch.randn(rows, width, generator=generator) * 2.0 for width in (student, teacher))
    labels = torch.randint(min(student, teacher) - 2, (rows,), generator=generator)
    if masked:
        own[0, student - 1] = other[-1, teacher - 1] = other[0, teacher - 2] = -torch.inf
    if rows > 1:
        labels[1] = IGNORED
    return RowInputs(own, other, labels, torch.rand(rows, generator=generator) + 0.5)


def only_the_label_is_offered() -> RowInputs:
    """Rows whose label is the only column that the student, the teacher, or both do not mask; the last is whole."""
    inputs = batch_of(4, 6, 6, seed=16, masked=False)
    assert inputs.teacher is not None
    assert inputs.labels is not None
    inputs.labels[1] = 2
    others = F.one_hot(inputs.labels, 6) == 0
    for side, rows in ((inputs.student, slice(0, 2)), (inputs.teacher, slice(1, 3))):
        side[rows] = side[rows].masked_fill(others[rows], -torch.inf)
    return inputs


def objective_of(inputs: RowInputs, spec: RowSpec) -> tuple[Tensor, Tensor]:
    """The objective's loss of a batch with one teacher, and its gradient to the student's logits."""
    assert inputs.labels is not None
    assert inputs.teacher is not None
    divergence = spec.divergence
    assert divergence is not None
    losses = [
        weighted_loss(divergence, spec.divergence_weight),
        recipe.CrossEntropy(weight=spec.ce_weight, label_smoothing=spec.label_smoothing),
    ]
    objective = Objective(losses, LossBuilder({}, {}, inputs.student.shape[1]), [Teacher(model="m")])
    student = inputs.student.clone().requires_grad_()
    seen = BatchOutputs(student, inputs.labels, {"teacher": TeacherSignal(inputs.teacher, None)})
    loss = objective(seen, objective.count(inputs.labels))["loss"]
    return loss.detach(), torch.autograd.grad(loss, student)[0]


OWN_FIELDS: dict[DivergenceKind, tuple[str, ...]] = {
    "jsd": ("temperature", "beta"),
    "skew-kl": ("temperature", "skew"),
    "skew-reverse-kl": ("temperature", "skew"),
    "nkd": ("temperature", "gamma"),
    "dkd": ("temperature", "alpha", "beta"),
    "bd-kd": ("temperature", "delta"),
    "logit-mse": ("centered",),
}
"""What the contract's loss of the same name has; the others have a temperature."""


def weighted_loss(divergence: Divergence, weight: float) -> Loss:
    """The contract's loss of the same name, validated as a job's is."""
    fields = OWN_FIELDS.get(divergence.kind, ("temperature",))
    kind = "kd" if divergence.kind == "forward-kl" else divergence.kind
    loss = {"kind": kind, "weight": weight, **{field: getattr(divergence, field) for field in fields}}
    return LOSS.validate_python(loss)
