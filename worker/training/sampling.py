"""How the batches of a job are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from app.recipe.job import JobSpec
from worker.data.batches import Augment, Batch, Batches, Order, Share
from worker.data.class_batches import order_of
from worker.data.hard_negatives import NAME as HARD_NEGATIVES
from worker.protocol import Send
from worker.students.model import Model
from worker.training.hard_negatives import HardNegativePool, open_pool
from worker.training.pseudo_labels import NAME as PSEUDO_LABELS
from worker.training.pseudo_labels import LabelStore, open_labels


class Sampling(NamedTuple):
    """What decides which samples are in a batch."""

    labels: LabelStore | None
    pool: HardNegativePool | None
    order: Order | None
    """Order of an epoch's samples, if neither of them decides; none: a random one."""

    def batches(self, samples: Batch, size: int, seed: int, augment: Augment | None, share: Share) -> Batches:
        """The batches of these samples."""
        order = self.labels.order if self.labels is not None else self.order
        return Batches(samples, size, seed, augment, share, order, self.pool.choose if self.pool is not None else None)

    def modules(self, device: torch.device) -> dict[str, nn.Module]:
        """Modules on this device whose state checkpoints store, by name."""
        found = {PSEUDO_LABELS: self.labels, HARD_NEGATIVES: self.pool}
        return {name: module.to(device) for name, module in found.items() if module is not None}

    def figures(self, seed: int) -> dict[str, Any]:
        """Figures for the report."""
        of_labels = {"pseudo_labels": self.labels.figures(seed)} if self.labels is not None else {}
        return of_labels | ({"hard_negatives": self.pool.figures()} if self.pool is not None else {})


def open_sampling(
    job: JobSpec, samples: Batch, teachers: Mapping[str, Model], seed: int, send: Send, *, resumed: bool
) -> Sampling:
    """How batches of the training `samples` are drawn. Raises as `open_labels`, `order_of` and `open_pool`."""
    return Sampling(
        open_labels(job, samples, teachers, seed, resumed=resumed),
        open_pool(job.recipe, samples, seed, send),
        order_of(job.recipe, samples),
    )
