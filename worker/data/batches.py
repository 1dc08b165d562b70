"""The order in which samples are seen: a pure function of seed and step, so a resumed run sees the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.data.randomness import generator


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples, or a whole split of them."""

    inputs: dict[str, Tensor]
    """Raw samples as stored, one tensor (B, ...) per view: what different models read may differ (see `Model.view`)."""
    targets: Tensor
    """(B,) int64 classes, (B, C) probabilities of classes, or (B, C) numbers."""
    index: Tensor
    """(B,) int64: number of each sample within its split."""
    epoch: int = 0
    """Which of the augmentation epochs the samples were drawn in."""

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, chosen: Tensor) -> Batch:
        """The samples at `chosen` (any number of int64 positions)."""
        inputs = {view: samples[chosen] for view, samples in self.inputs.items()}
        return Batch(inputs, self.targets[chosen], self.index[chosen], self.epoch)

    def split(self, parts: int) -> Iterator[Batch]:
        """At most `parts` micro-batches of nearly equal size, none of them empty."""
        count = min(parts, len(self))
        views = [samples.tensor_split(count) for samples in self.inputs.values()]
        for targets, index, *samples in zip(
            self.targets.tensor_split(count), self.index.tensor_split(count), *views, strict=True
        ):
            yield Batch(dict(zip(self.inputs, samples, strict=True)), targets, index, self.epoch)

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        inputs = {view: samples.to(device) for view, samples in self.inputs.items()}
        return Batch(inputs, self.targets.to(device), self.index.to(device), self.epoch)


def whole_split(inputs: dict[str, Tensor], targets: Tensor) -> Batch:
    """All samples of a split, numbered from 0."""
    return Batch(inputs, targets, torch.arange(len(targets), device=targets.device))


Augment = Callable[[Batch, int], Batch]
"""Changes the samples of a batch, as drawn for this epoch; a pure function of both and of the job's seed."""


Share = Callable[[Tensor], Tensor]
"""Which of the samples (B,) of a batch are for this process."""


class Batches:
    """Shuffled batches over samples that live on one device; the last batch of an epoch may be smaller."""

    def __init__(
        self, samples: Batch, batch_size: int, seed: int, augment: Augment | None = None, share: Share | None = None
    ) -> None:
        self.samples, self.augment, self._size, self._seed = samples, augment, batch_size, seed
        self._share = share or (lambda chosen: chosen)
        self.steps_per_epoch = -(-len(samples) // batch_size)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Batch:
        """The share in the batch of optimizer step `step`, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        batch = self.samples.take(self._share(self._order_of(epoch)[index * self._size : (index + 1) * self._size]))
        return self.augment(batch, epoch) if self.augment else batch

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = torch.randperm(len(self.samples), generator=generator(self._seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.samples.targets.device)
        return self._order
