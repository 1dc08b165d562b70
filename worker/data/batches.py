"""The order in which samples are seen: a pure function of seed and step, so a resumed run sees the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.data.randomness import generator

ROWS, NEXT = "rows:", "next:"
"""Begin the names of inputs about tokens of a teacher's own: the places in them that have read what the student
has (see `TeacherSignal.rows`), and what comes behind each of its tokens."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples, or a whole split of them."""

    inputs: dict[str, Tensor]
    """Raw samples as stored, one tensor (B, ...) per input key: what models read may differ (`Model.input_key`)."""
    targets: Tensor
    """(B,) int64 classes, (B, S) int64 classes of tokens, (B, C) probabilities of classes, or (B, C) numbers."""
    index: Tensor
    """(B,) int64: number of each sample within its split."""
    epoch: int = 0
    """Which of the augmentation epochs the samples were drawn in."""
    rows_per_sample: int = 1
    """Rows that make one sample and lie one after the other: 2 for pairs of texts that are read one by one. All other
    shapes here count rows."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def samples(self) -> int:
        """Rows, or pairs of them."""
        return len(self) // self.rows_per_sample

    @property
    def storage_device(self) -> torch.device:
        """Where the rows lie."""
        return self.targets.device

    @property
    def device(self) -> torch.device:
        """Where rows that are taken arrive."""
        return self.targets.device

    def take(self, chosen: Tensor) -> Batch:
        """The rows at `chosen` (any number of int64 positions)."""
        inputs = {input_key: samples[chosen] for input_key, samples in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets[chosen], index=self.index[chosen])

    def take_samples(self, chosen: Tensor) -> Batch:
        """All rows of the samples at `chosen` (any number of int64 positions)."""
        within = torch.arange(self.rows_per_sample, device=chosen.device)
        return self.take((chosen.unsqueeze(1) * self.rows_per_sample + within).flatten())

    def split(self, parts: int) -> Iterator[Batch]:
        """At most `parts` micro-batches of nearly equal size, none of them empty; no sample is torn apart."""
        for part in torch.arange(self.samples).tensor_split(min(parts, self.samples)):
            yield self.between(int(part[0]) * self.rows_per_sample, (int(part[-1]) + 1) * self.rows_per_sample)

    def between(self, first: int, end: int) -> Batch:
        """The rows from `first` on that come before `end`, as far as there are any."""
        rows = slice(first, end)
        inputs = {input_key: samples[rows] for input_key, samples in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets[rows], index=self.index[rows])

    def parts(self, rows: int) -> Iterator[Batch]:
        """All rows in their order, so many at a time."""
        return (self.between(first, first + rows) for first in range(0, len(self), rows))

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        inputs = {input_key: samples.to(device) for input_key, samples in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets.to(device), index=self.index.to(device))

    def settle(self, device: torch.device, room: float) -> Batch:
        """The same for rows to be taken on `device`: there, or where they take more than `room` bytes on the host."""
        if sum(tensor.nbytes for tensor in (*self.inputs.values(), self.targets, self.index)) <= room:
            return self.to(device)
        return OnHost(self.inputs, self.targets, self.index, self.epoch, self.rows_per_sample, place=device)


@dataclass(frozen=True, eq=False, kw_only=True)
class OnHost(Batch):
    """A split too large for the device. What is taken is gathered in pinned memory and sent from there, by a copy that
    nothing waits for but what comes behind it on the same stream."""

    place: torch.device
    """Where rows that are taken go."""

    @property
    def device(self) -> torch.device:
        return self.place

    def take(self, chosen: Tensor) -> Batch:
        rows = chosen.to(self.storage_device)
        inputs = {input_key: self._send(samples, rows) for input_key, samples in self.inputs.items()}
        targets, index = self._send(self.targets, rows), self._send(self.index, rows)
        return Batch(inputs, targets, index, self.epoch, self.rows_per_sample)

    def between(self, first: int, end: int) -> Batch:
        return self.take(torch.arange(first, min(end, len(self))))

    def _send(self, values: Tensor, rows: Tensor) -> Tensor:
        shape = (len(rows), *values.shape[1:])
        staged = torch.empty(shape, dtype=values.dtype, pin_memory=self.place.type == "cuda")
        return torch.index_select(values, 0, rows, out=staged).to(self.place, non_blocking=True)


def whole_split(inputs: dict[str, Tensor], targets: Tensor, rows_per_sample: int = 1) -> Batch:
    """All samples of a split, numbered from 0."""
    return Batch(inputs, targets, torch.arange(len(targets), device=targets.device), rows_per_sample=rows_per_sample)


Augment = Callable[[Batch, int], Batch]
"""Changes the samples of a batch, as drawn for this epoch; a pure function of both and of the job's seed."""


Share = Callable[[Tensor], Tensor]
"""Which of the samples (B,) of a batch are for this process."""


class Batches:
    """Shuffled batches of a split; the last batch of an epoch may be smaller."""

    def __init__(
        self, samples: Batch, batch_size: int, seed: int, augment: Augment | None = None, share: Share | None = None
    ) -> None:
        self.samples, self.augment, self._size, self._seed = samples, augment, batch_size, seed
        self._share = share or (lambda chosen: chosen)
        self.steps_per_epoch = -(-samples.samples // batch_size)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Batch:
        """The share in the batch of optimizer step `step`, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        chosen = self._order_of(epoch)[index * self._size : (index + 1) * self._size]
        batch = self.samples.take_samples(self._share(chosen))
        return self.augment(batch, epoch) if self.augment else batch

    def size_at(self, step: int) -> int:
        """Samples of the whole batch of optimizer step `step`, in all processes together."""
        return min(self._size, self.samples.samples - step % self.steps_per_epoch * self._size)

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = torch.randperm(self.samples.samples, generator=generator(self._seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.samples.storage_device)
        return self._order
