"""Batches in an order that is a pure function of seed and step, so that a resumed run has the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.data.randomness import generator

ROWS, NEXT = "rows:", "next:"
"""Prefixes of inputs for a teacher with another tokenizer: the indices of its tokens that are aligned with the
student's (see `TeacherSignal.rows`), and the token after each of its tokens."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples, or a whole split of them."""

    inputs: dict[str, Tensor]
    """Raw samples as stored, one tensor (B, ...) per input key; models may have different input keys
    (`Model.input_key`)."""
    targets: Tensor
    """(B,) int64 classes, (B, S) int64 classes of tokens, (B, C) floating probabilities of classes or values, or
    (B, P) int32 numbers of the labels of each sample, `IGNORED` behind the last; to evaluate anomalies (B, H, W) uint8
    masks."""
    index: Tensor
    """(B,) int64: index of each sample in its split."""
    epoch: int = 0
    """Augmentation epoch of the samples."""
    rows_per_sample: int = 1
    """Consecutive rows that make one sample: 2 for pairs of texts that are encoded separately. All other shapes here
    count rows."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def samples(self) -> int:
        """Number of samples: rows, or pairs of rows."""
        return len(self) // self.rows_per_sample

    @property
    def storage_device(self) -> torch.device:
        """Device where the rows are stored."""
        return self.targets.device

    @property
    def device(self) -> torch.device:
        """Device of the batches that `take` returns."""
        return self.targets.device

    def take(self, chosen: Tensor) -> Batch:
        """The rows at `chosen` (n,) int64."""
        inputs = {input_key: samples[chosen] for input_key, samples in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets[chosen], index=self.index[chosen])

    def take_samples(self, chosen: Tensor) -> Batch:
        """All rows of the samples at `chosen` (n,) int64."""
        within = torch.arange(self.rows_per_sample, device=chosen.device)
        return self.take((chosen.unsqueeze(1) * self.rows_per_sample + within).flatten())

    def split(self, parts: int) -> Iterator[Batch]:
        """At most `parts` micro-batches of nearly equal size, none of them empty; no sample is divided."""
        for part in torch.arange(self.samples).tensor_split(min(parts, self.samples)):
            yield self.between(int(part[0]) * self.rows_per_sample, (int(part[-1]) + 1) * self.rows_per_sample)

    def between(self, first: int, end: int) -> Batch:
        """The rows from `first` to before `end`, or to the last one."""
        rows = slice(first, end)
        inputs = {input_key: samples[rows] for input_key, samples in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets[rows], index=self.index[rows])

    def parts(self, rows: int) -> Iterator[Batch]:
        """All rows in their order, `rows` at a time."""
        return (self.between(first, first + rows) for first in range(0, len(self), rows))

    def to(self, device: torch.device) -> Batch:
        """A copy on `device`."""
        inputs = {input_key: samples.to(device) for input_key, samples in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets.to(device), index=self.index.to(device))

    def settle(self, device: torch.device, max_bytes: float) -> Batch:
        """The batch for taking rows on `device`: stored there, or on the host if it has more than `max_bytes`."""
        if sum(tensor.nbytes for tensor in (*self.inputs.values(), self.targets, self.index)) <= max_bytes:
            return self.to(device)
        return OnHost(self.inputs, self.targets, self.index, self.epoch, self.rows_per_sample, place=device)


@dataclass(frozen=True, eq=False, kw_only=True)
class OnHost(Batch):
    """A split too large for the device. Taken rows are gathered in pinned memory and copied to the device
    asynchronously, in the order of the stream."""

    place: torch.device
    """Device of the batches that `take` returns."""

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
    """All samples of a split, numbered from 0: inputs and targets are (N, ...), of any dtype."""
    return Batch(inputs, targets, torch.arange(len(targets), device=targets.device), rows_per_sample=rows_per_sample)


Augment = Callable[[Batch, int], Batch]
"""Augments a batch for an epoch; a pure function of both and of the job's seed."""


Share = Callable[[Tensor], Tensor]
"""Selects from the samples (B,) int64 of a batch those of this process."""


Order = Callable[[torch.Generator], Tensor]
"""Draws the indices (N,) int64 of an epoch's N samples."""


Choose = Callable[[int, int], Tensor]
"""Chooses the samples (B,) int64 of an optimizer step, given its number and B."""


class Batches:
    """Shuffled batches of a split; the last batch of an epoch may be smaller."""

    def __init__(
        self,
        samples: Batch,
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        share: Share | None = None,
        order: Order | None = None,
        choose: Choose | None = None,
    ) -> None:
        """`order` replaces a random permutation, and `choose` every order."""
        self._draw, self._choose = order or self._permutation, choose
        self.samples, self.augment, self._size, self._seed = samples, augment, batch_size, seed
        self._share = share or (lambda chosen: chosen)
        self.steps_per_epoch = -(-samples.samples // batch_size)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Batch:
        """This process's share of the batch of optimizer step `step`, counted from 0 over all epochs."""
        epoch = step // self.steps_per_epoch
        batch = self.samples.take_samples(self._share(self._chosen(step)))
        return self.augment(batch, epoch) if self.augment else batch

    def size_at(self, step: int) -> int:
        """Samples of the whole batch of optimizer step `step`, in all processes together."""
        return min(self._size, self.samples.samples - step % self.steps_per_epoch * self._size)

    def _chosen(self, step: int) -> Tensor:
        if self._choose is not None:
            return self._choose(step, self.size_at(step)).to(self.samples.storage_device)
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._order_of(epoch)[index * self._size : (index + 1) * self._size]

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = self._draw(generator(self._seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.samples.storage_device)
        return self._order

    def _permutation(self, random: torch.Generator) -> Tensor:
        return torch.randperm(self.samples.samples, generator=random)
