"""Arguments and results of the row kernels: a divergence from the teacher, cross-entropy with the label, or both.

`worker.kernels.references` defines both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from worker.tensors import IGNORED

DivergenceKind = Literal[
    "forward-kl",
    "reverse-kl",
    "jsd",
    "skew-kl",
    "skew-reverse-kl",
    "tvd",
    "nkd",
    "dkd",
    "bd-kd",
    "logit-mse",
]


@dataclass(frozen=True)
class Divergence:
    """One divergence; each kind uses the fields that its term in `app.recipe.losses` has.

    Raises ValueError for a temperature that is not positive; the contract checks the rest.
    """

    kind: DivergenceKind
    """As in the contract; `forward-kl` is its `kd`, and so is multiplied by the squared temperature."""
    temperature: float = 1.0
    """Divides student and teacher logits, except for `logit-mse`."""
    beta: float = 0.5
    """`jsd`: share of the teacher in the mixture; `dkd`: weight of the other classes among themselves."""
    skew: float = 0.1
    """`skew-kl`: share of the teacher in the mixture; `skew-reverse-kl`: share of the student."""
    gamma: float = 1.5
    """`nkd`: weight of the non-target part."""
    alpha: float = 1.0
    """`dkd`: weight of the target class against the rest."""
    delta: float = 2.0
    """`bd-kd`: weight of the divergence with more weight."""
    centered: bool = False
    """`logit-mse`: subtracts each side's mean first."""

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError("temperature: accepted: a number above 0")


@dataclass(frozen=True)
class RowSpec:
    """`divergence_weight` divergence + `ce_weight` cross-entropy of a row; a part with weight 0 is not computed.

    Raises ValueError for a `label_smoothing` outside [0, 1).
    """

    divergence: Divergence | None
    divergence_weight: float = 1.0
    ce_weight: float = 0.0
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    ignore_index: int = IGNORED
    """Label of an ignored row: loss and gradient are 0, and its logits are not read."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError("label_smoothing: accepted: a number from 0 to below 1")


class RowInputs(NamedTuple):
    """Inputs of the losses of R rows."""

    student: Tensor
    """Logits (R, C) of a floating dtype, in rows without gaps."""
    teacher: Tensor | None
    """Logits (R, D) of a floating dtype."""
    labels: Tensor | None
    """(R,) int64."""
    row_weights: Tensor | None
    """(R,) float32."""


class RowLosses(NamedTuple):
    """Losses of each row (R,), float32 (float64 for such logits); 0 if the row is ignored or the part has weight 0."""

    total: Tensor
    """Both parts with their weights, times the row's weight."""
    divergence: Tensor
    """Before any weight."""
    cross_entropy: Tensor
    """Before any weight."""
