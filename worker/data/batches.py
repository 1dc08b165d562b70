"""The order in which samples are seen: a pure function of seed and step, so a resumed run sees the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from worker.data.randomness import generator


class Batch(NamedTuple):
    """Images (B, C, H, W), raw pixels as stored, and labels (B,) int64."""

    images: Tensor
    labels: Tensor

    def split(self, parts: int) -> Iterator[Batch]:
        """At most `parts` micro-batches of nearly equal size, none of them empty."""
        count = min(parts, len(self.labels))
        for images, labels in zip(self.images.tensor_split(count), self.labels.tensor_split(count), strict=True):
            yield Batch(images, labels)


class Batches:
    """Shuffled batches over samples that live on one device; the last batch of an epoch may be smaller."""

    def __init__(self, samples: Batch, batch_size: int, seed: int) -> None:
        self._samples, self._size, self._seed = samples, batch_size, seed
        self.steps_per_epoch = -(-len(samples.labels) // batch_size)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Batch:
        """The batch of optimizer step `step`, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        chosen = self._order_of(epoch)[index * self._size : (index + 1) * self._size]
        return Batch(self._samples.images[chosen], self._samples.labels[chosen])

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = torch.randperm(len(self._samples.labels), generator=generator(self._seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self._samples.labels.device)
        return self._order
