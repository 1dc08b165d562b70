"""Starts a student whose last layer is a codebook (VQ-Logits, arXiv 2505.10202)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.clustering import k_means
from worker.data.randomness import derive_seed
from worker.errors import UserError
from worker.students.model import Model, last_layer


@torch.no_grad()
def start_codebook(student: Model, teachers: Mapping[str, Model], seed: int) -> None:
    """Cluster the output embeddings of the first teacher with the student's inputs, if the student's last layer is a
    codebook without codes: the cluster of an output becomes its code, and the centres the codebook, if both models are
    of one width.

    Raises UserError (`invalid_job`) if there is no such teacher.
    """
    layer = student.codebook
    if layer is None or bool(layer.codes.any()):  # which another model gave it
        return
    teacher = next((each for each in teachers.values() if each.input_key == student.input_key), None)
    rows = None if teacher is None else output_embeddings(teacher)
    if rows is None:
        found = "is vq-logits, and no teacher has the student's inputs and a linear last layer, for its codes"
        raise UserError("invalid_job", f"student.head.kind {found}; accepted: linear", "student.head.kind")
    rows = F.pad(rows.float().cpu(), (0, 0, 0, max(0, len(layer.codes) - len(rows))))[: len(layer.codes)]
    draw = torch.Generator().manual_seed(derive_seed(seed, "codebook"))
    first = torch.randperm(len(rows), generator=draw)[: len(layer.weight)]
    centres, codes = k_means(rows, rows[first])
    layer.codes.copy_(codes)
    if centres.shape == layer.weight.shape:
        layer.weight.copy_(centres)


def output_embeddings(model: Model) -> Tensor | None:
    """Weight (C, D), floating, of the last layer with a row for each class or token; none: it has no such layer."""
    if model.codebook is not None:
        return model.codebook.full()["weight"]
    layer = last_layer(model)
    return None if layer is None else layer.weight.detach()
