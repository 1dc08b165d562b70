"""Collects the metrics of steps without waiting for the device, and transfers them at intervals."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.errors import UserError

WEIGHTS = ("student/", "ema/", "parts/", "learner/", "learner-parts/", "learner-ema/")
"""Names of a checkpoint's tensors that are weights begin with one of these."""


class MetricLogger:
    """Values of the steps since the last `read`, on the device."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Tensor]] = []

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of one step: floating scalars by name."""
        self._rows.append(values)

    def read(self, step: int) -> dict[str, float]:
        """Mean of every value since the last `read`, over the steps that had it; `step` is the number of the newest.

        Raises as `check`.
        """
        if not self._rows:
            return {}
        table, counts = self.check(step), [sum(name in row for row in self._rows) for name in self._names()]
        means = (table.double().sum(0) / torch.tensor(counts)).tolist()
        names, self._rows = self._names(), []
        return dict(zip(names, means, strict=True))

    def check(self, step: int) -> Tensor:
        """Table (steps, values) float32 on the CPU since the last `read`, without clearing it; 0 if a step lacks a
        value.

        Raises UserError (`nan_loss`) naming the first step with a value that is not finite. One transfer from the
        device, however many steps there were.
        """
        if not self._rows:
            return torch.empty(0, 0)
        names, zero = self._names(), next(iter(self._rows[0].values())).new_zeros(())
        rows = [torch.stack([row.get(name, zero).float() for name in names]) for row in self._rows]
        table = torch.stack(rows).cpu()
        _refuse_non_finite(table, names, step - len(self._rows) + 1)
        return table

    def _names(self) -> list[str]:
        """Names of all values; stages may have different terms."""
        return list(dict.fromkeys(name for row in self._rows for name in row))


def _refuse_non_finite(table: Tensor, names: list[str], first: int) -> None:
    wrong = (~table.isfinite()).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise diverged(f"{names[column]} became {table[row, column].item()} at step {first + row}", first + row)


def require_finite_weights(tensors: Mapping[str, Tensor], step: int) -> None:
    """Raise UserError (`nan_loss`) if a weight is not finite: a step can overflow although its gradient did not.

    `tensors`, of any shapes and dtypes, are those of a checkpoint.
    """
    finite = [tensor.isfinite().all() for name, tensor in tensors.items() if name.startswith(WEIGHTS)]
    if finite and not bool(torch.stack(finite).all()):
        raise diverged(f"a weight is not finite after step {step}", step)


def diverged(what: str, step: int) -> UserError:
    """The error of a training with values that are not finite."""
    return UserError("nan_loss", f"training diverged: {what}; try a lower learning rate", "recipe.optimizer.lr", step)
