"""Last layers that are computed from features after the last step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from app.recipe.plan import EVAL_BATCH
from worker.data.batches import Batch
from worker.errors import UserError
from worker.losses.base import target_column
from worker.students.heads import nb_diag
from worker.students.model import Model, last_layer


def fit_head(student: Model, samples: Batch) -> None:
    """Compute the student's head from the training `samples`, as they are, if it is of such a kind.

    Raises UserError (`invalid_data`) if a class has no sample.
    """
    spec, layer = nb_diag.spec_of(student.config.architecture), last_layer(student)
    if spec is None or layer is None:
        return
    if missing := nb_diag.fit(layer, _features(student, layer, samples), spec.smoothing):
        names = student.config.class_names or list(map(str, range(layer.out_features)))
        found = f"has no sample of class {names[missing[0]]!r}, whose mean student.head {spec.kind} needs"
        raise UserError("invalid_data", f"data.train {found}; accepted: samples of every class", "data.train")


def _features(student: Model, layer: torch.nn.Linear, samples: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of the last layer (n, D), float32, and labels (n,) int64, a batch at a time."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float()))
    was_training, device = student.training, layer.weight.device
    student.eval()
    try:
        with torch.no_grad():
            for batch in samples.parts(EVAL_BATCH):
                student(batch.inputs[student.input_key].to(device))
                yield found.pop(), target_column(batch.targets).squeeze(-1)
    finally:
        handle.remove()
        student.train(was_training)
