"""Adapters from a student's feature to its teacher's width: layers trained with the student and dropped afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from app.recipe.losses.features import Reduction
from app.recipe.losses.taps import Pair, Tap
from worker.errors import UserError
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.activations import (
    along_channels,
    both,
    both_vectors,
    channel_axis,
    describe,
    row_shares,
    same_size,
    width_of,
)

Choice = Literal["auto", "linear", "conv1x1", "connector", "none"]
KINDS = {2: "vectors (B, D)", 3: "tokens (B, S, D)", 4: "maps (B, C, H, W)"}
"""Features by their number of axes."""


class RowNorm(nn.Module):
    """Batch normalisation over the valid rows alone; in float64, equal to torch's if all rows are valid.

    A batch with one value per channel has no variance: the output is the bias.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, feature: Tensor, valid: Tensor | None = None) -> Tensor:
        """The normalised feature, from a floating `feature` (B, D), (B, S, D) or (B, C, H, W); `valid` (B,) bool."""
        mean, var = self._measure(feature, valid) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * (var + self.eps).rsqrt()
        rank = feature.ndim
        return (feature - along_channels(mean, rank)) * along_channels(scale, rank) + along_channels(self.bias, rank)

    def _measure(self, feature: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) of each channel."""
        shares = row_shares(len(feature), valid, feature)
        positions = [axis for axis in range(1, feature.ndim) if axis != channel_axis(feature.ndim)]
        mean = shares @ (feature.mean(positions) if positions else feature)
        squares = (feature - along_channels(mean, feature.ndim)).square()
        var = shares @ (squares.mean(positions) if positions else squares)
        self._update_running(mean, var, feature, valid)
        return mean, var

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, feature: Tensor, valid: Tensor | None) -> None:
        """Update the running statistics; a batch without a valid row does not change them."""
        rows = feature.new_tensor(len(feature)) if valid is None else valid.sum().to(feature.dtype)
        count = rows * (feature[0].numel() // len(mean))
        momentum = self.momentum * (rows > 0)
        self.running_mean.lerp_(mean.to(self.running_mean), momentum.to(self.running_mean))
        unbiased = var * count / (count - 1).clamp(min=1)
        self.running_var.lerp_(unbiased.to(self.running_var), momentum.to(self.running_var))


class Adapter(nn.Module):
    """One linear map at every position: with a bias, or, as a connector, followed by a batch norm.

    Connectors are initialised as the authors' (1904.01866): weights N(0, 2 / outputs), batch norm as identity.
    """

    def __init__(self, rank: int, inputs: int, outputs: int, connector: bool) -> None:
        super().__init__()
        bias = not connector
        self.map = nn.Conv2d(inputs, outputs, 1, bias=bias) if rank == 4 else nn.Linear(inputs, outputs, bias=bias)
        self.norm = RowNorm(outputs) if connector else None
        if connector:
            nn.init.normal_(self.map.weight, std=math.sqrt(2.0 / outputs))

    def forward(self, feature: Tensor, valid: Tensor | None = None) -> Tensor:
        """The floating `feature` mapped to the width `outputs`; `valid` (B,) bool: rows that the batch norm uses."""
        mapped: Tensor = self.map(feature)
        return mapped if self.norm is None else self.norm(mapped, valid)


class Joint(NamedTuple):
    """Reads one pair of features and makes them comparable."""

    pair: Pair
    adapter: nn.Module | None
    reduction: Literal["none"] | Reduction = "none"

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """The student's feature (B, ...) after its adapter, and the teacher's, in at least float32; maps have one
        size."""
        student, teacher = self._read(inputs)
        return (student if self.adapter is None else self.adapter(student, inputs.valid)), teacher

    def _read(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        if self.reduction == "none":
            return same_size(*both(inputs, self.pair))
        return both_vectors(inputs, self.pair, self.reduction)


class Joiner(NamedTuple):
    """Builds the joints of one term; raises an error that names the field if features do not fit."""

    builder: LossBuilder
    name: str
    teacher: str | None
    choice: Choice
    reduction: Literal["none"] | Reduction = "none"

    def join(self, pair: Pair, field: str, widths_differ: bool = False) -> Joint:
        """The joint of `pair`. Raises UserError unless both features are of one kind and, with neither an adapter nor
        `widths_differ`, of one width."""
        student, teacher = self._shapes(pair, field)
        if len(student) != len(teacher):
            raise self._refuse(student, teacher, "features of one kind, or a reduction to vectors", field)
        if len(student) == 3:
            require_same_tokens(self.builder, student, teacher, self.teacher, field)
        adapter = self._adapter(pair, student, teacher)
        if adapter is None and not widths_differ and width_of(student) != width_of(teacher):
            raise self._refuse(student, teacher, "equal widths, or an adapter", field)
        return Joint(pair, adapter, self.reduction)

    def _shapes(self, pair: Pair, field: str) -> tuple[torch.Size, torch.Size]:
        """Shapes of the pair's features after the reduction."""
        shapes = self.builder.student(pair.student), self.builder.teacher(pair.teacher, self.teacher)
        for shape in shapes:
            require_kind(self.builder, shape, (2, 3, 4), field)
        if self.reduction == "none":
            return shapes
        student, teacher = (torch.Size((shape[0], width_of(shape))) for shape in shapes)
        return student, teacher

    def _adapter(self, pair: Pair, student: torch.Size, teacher: torch.Size) -> nn.Module | None:
        choice, rank = self._resolve(student, teacher), len(student)
        if choice == "none":
            return None
        inputs, outputs = width_of(student), width_of(teacher)
        key = part_key(self.name, choice, [pair.student, pair.teacher], self.teacher)
        return self.builder.part(key, lambda: Adapter(rank, inputs, outputs, choice == "connector"))

    def _resolve(self, student: torch.Size, teacher: torch.Size) -> Choice:
        """The adapter that `auto` stands for; raises UserError for an adapter that is for another kind of feature."""
        fitting: Choice = "conv1x1" if len(student) == 4 else "linear"
        if self.choice == "auto":
            return "none" if width_of(student) == width_of(teacher) else fitting
        if self.choice in ("linear", "conv1x1") and self.choice != fitting:
            raise self.builder.refuse(f"{self.choice} does not fit {describe(student)}; accepted: {fitting}", "adapter")
        return self.choice

    def _refuse(self, student: torch.Size, teacher: torch.Size, accepted: str, field: str) -> UserError:
        found = f"the student has {describe(student)}, the teacher {describe(teacher)}"
        return self.builder.refuse(f"{found}; accepted: {accepted}", field)


def require_kind(builder: LossBuilder, shape: torch.Size, ranks: tuple[int, ...], field: str) -> None:
    """Raises UserError unless a feature has one of these numbers of axes, batch axis included."""
    if len(shape) not in ranks:
        accepted = " or ".join(KINDS[rank] for rank in ranks)
        raise builder.refuse(f"the feature has {describe(shape)}; accepted: {accepted}", field)


def require_same_tokens(
    builder: LossBuilder, student: torch.Size, teacher: torch.Size, name: str | None, field: str
) -> None:
    """Raises UserError unless tokens (B, S, D) of the student and of the teacher called `name` are the same ones."""
    if not builder.same_tokens(name):
        raise builder.refuse("student and teacher have different tokenizers; accepted: data.tokenizer teacher", field)
    if student[1] != teacher[1]:
        found = f"the student has {describe(student)}, the teacher {describe(teacher)}"
        raise builder.refuse(f"{found}; accepted: the same number of tokens in both", field)


def part_key(name: str, what: str, taps: Sequence[Tap], teacher: str | None) -> str:
    """Name of a trainable module, the same for terms that share it; without dots, which torch forbids in it."""
    places = [f"{tap.path}:{tap.at}".replace(".", "|") for tap in taps]
    return "/".join([name, what, *places, *([teacher] if teacher else [])])
