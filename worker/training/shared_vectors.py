"""Vectors of samples, of which each process computes a share."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.data.batches import Batch
from worker.distributed.ranks import SingleProcess
from worker.students.model import Model
from worker.tasks.prediction import evaluating


def shared_vectors(model: Model, samples: Batch, rows: Tensor, ranks: SingleProcess) -> Tensor:
    """Outputs (n, D) float32 of a model of vectors for these rows (n,) int64, in evaluation mode, on its device: the
    same on all ranks, each of which computes a share."""
    device = next(model.parameters()).device
    part = ranks.share(torch.arange(len(rows)))
    vectors = torch.zeros(len(rows), model.config.outputs, device=device)
    computed = torch.zeros(len(rows), 1, device=device)
    taken = samples.take(rows[part].to(samples.storage_device)).inputs[model.input_key]
    with evaluating(model):
        vectors[part.to(device)] = model(taken).float()
    computed[part.to(device)] = 1.0
    return ranks.sum(vectors) / ranks.sum(computed)  # few rows are computed by all ranks


def from_first(value: Tensor, ranks: SingleProcess) -> Tensor:
    """`value`, of any shape and dtype, as the first of the ranks has computed it: kinds of machines may differ in the
    last digit."""
    return ranks.sum(value if ranks.first else torch.zeros_like(value))
