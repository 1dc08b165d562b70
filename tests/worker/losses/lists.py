"""Queries with candidates, for tests of losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worker.data.pairs import NEGATIVE, PADDED, PADDING, POSITIVE, QUERY, ROLE, SCORE, TEXT
from worker.data.randomness import generator
from worker.losses.base import LossInputs

WIDTH = 5


class Lists(NamedTuple):
    """Rows (R, WIDTH) float64 of both sides, and their labels (R, 3)."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    size: int
    """Rows of a sample."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.labels) // self.size

    @property
    def inputs(self) -> LossInputs:
        """What a term gets of the whole batch."""
        valid = self.labels[:, ROLE] != PADDING
        return LossInputs(self.student, self.labels, self.teacher, valid, rows_per_sample=self.size)

    def widened(self, more: int) -> Lists:
        """The same samples, padded by `more` rows each."""
        sides = [side.detach().view(self.samples, self.size, -1) for side in (self.student, self.teacher, self.labels)]
        filled = [torch.cat([side, side.new_ones(len(side), more, side.shape[2])], 1) for side in sides]
        filled[2][:, self.size :] = torch.tensor([float("nan"), PADDED, PADDING], dtype=torch.float64)
        student, teacher, labels = (side.flatten(0, 1) for side in filled)
        return Lists(student.requires_grad_(), teacher, labels, self.size + more)


def draw_lists(lengths: Sequence[int], positives: Sequence[int] = (), seed: int = 0) -> Lists:
    """Samples of a query and so many candidates, of which one or `positives` are positives; all texts differ. Scores
    are between 0 and 1."""
    random, size = generator(seed, "lists"), 1 + max(lengths)
    count = len(lengths) * size
    student, teacher = (torch.randn(count, WIDTH, generator=random, dtype=torch.float64) for _ in range(2))
    labels = torch.empty(len(lengths), size, 3, dtype=torch.float64)
    labels[..., SCORE] = torch.rand(len(lengths), size, generator=random, dtype=torch.float64)
    labels[..., TEXT] = torch.arange(count).view(len(lengths), size)
    labels[..., ROLE] = NEGATIVE
    for sample, length in enumerate(lengths):
        found = positives[sample] if positives else 1
        labels[sample, 1 : 1 + found, ROLE] = POSITIVE
        labels[sample, 0, SCORE] = float("nan")
        labels[sample, 0, ROLE] = QUERY
        labels[sample, 1 + length :] = torch.tensor([float("nan"), PADDED, PADDING], dtype=torch.float64)
    return Lists(student.requires_grad_(), teacher, labels.flatten(0, 1), size)
