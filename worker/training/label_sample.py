"""Some of the labels in every step: those of the batch's samples, and others that are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.students.architectures import DualEncoder
from worker.data.batches import Batch
from worker.outputs import TeacherSignal
from worker.students.dual_encoder import DualEncoderNetwork
from worker.students.model import Model
from worker.tensors import IGNORED


@dataclass(frozen=True)
class LabelSample:
    """Restricts a batch to `count` labels, or to those of its samples if they are more."""

    network: DualEncoderNetwork
    count: int

    def __call__(self, batch: Batch, signals: dict[str, TeacherSignal]) -> tuple[Batch, dict[str, TeacherSignal]]:
        """The batch with targets (B, L) float32 of the labels that the network's next forward pass returns, and the
        teachers' logits of the same."""
        chosen = self.network.choose_labels(present(batch.targets), self.count)
        targets = of_labels(batch.targets, chosen, len(self.network.labels))
        restricted = {name: replace(each, outputs=each.logits[:, chosen]) for name, each in signals.items()}
        return replace(batch, targets=targets), restricted


def label_sample(job: JobSpec, student: Model) -> LabelSample | None:
    """The sample of labels for each step of `job`; none: its student has outputs for all of them."""
    network = student.network
    if not isinstance(job.student, DualEncoder) or not isinstance(network, DualEncoderNetwork):
        return None
    count = job.student.labels_per_step
    return None if count is None else LabelSample(network, count)


def present(targets: Tensor) -> Tensor:
    """Classes (n,) int64, ascending, that some row has, of targets (B, C) floating or (B, P) int32."""
    if targets.dtype == torch.int32:
        found: Tensor = torch.unique(targets[targets != IGNORED].long())
        return found
    return (targets > 0).any(0).nonzero().squeeze(1)


def of_labels(targets: Tensor, chosen: Tensor, classes: int) -> Tensor:
    """Targets (B, L) float32 of the `chosen` classes (L,) int64, which have all that are there, of `classes`."""
    if targets.dtype != torch.int32:
        return targets[:, chosen]
    place = chosen.new_full((classes + 1,), len(chosen))
    place[chosen] = torch.arange(len(chosen), device=chosen.device)
    places = place[targets.long().masked_fill(targets == IGNORED, classes)]
    found = torch.zeros(len(targets), len(chosen) + 1, device=targets.device)
    return found.scatter_(1, places, 1.0)[:, :-1]
