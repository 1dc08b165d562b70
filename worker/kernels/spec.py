"""What the kernels compute for a row of logits: a divergence from the teacher, cross-entropy with the label, or both.

The definitions are those of the terms in `worker.losses`, at which the plain paths are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """One divergence; each kind looks at the fields that its term in `app.recipe.losses` has."""

    kind: DivergenceKind
    """As in the contract; `forward-kl` is its `kd`, and so is multiplied by the squared temperature."""
    temperature: float = 1.0
    """Divides both sides' logits, but for `logit-mse`."""
    beta: float = 0.5
    """`jsd`: share of the teacher in the mixture; `dkd`: weight of the other classes among themselves."""
    skew: float = 0.1
    """`skew-kl`: share of the teacher in the mixture; `skew-reverse-kl`: share of the student."""
    gamma: float = 1.5
    """`nkd`: weight of the non-target part."""
    alpha: float = 1.0
    """`dkd`: weight of the target class against the rest."""
    delta: float = 2.0
    """`bd-kd`: weight of the divergence that counts more."""
    centered: bool = False
    """`logit-mse`: takes each side's mean off first."""
    softcap: float | None = None
    """Logits z of both sides become softcap tanh(z / softcap), before anything else looks at them."""
    logit_scale: float = 1.0
    """Multiplies the logits of both sides, before `softcap`."""


@dataclass(frozen=True)
class RowSpec:
    """`divergence_weight` divergence + `ce_weight` cross-entropy of a row; what weighs nothing is not computed.

    `softcap` and `logit_scale` of the divergence hold for the cross-entropy too, also where its weight is 0.
    """

    divergence: Divergence | None
    divergence_weight: float = 1.0
    ce_weight: float = 0.0
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    ignore_index: int = IGNORED
    """Label of a row that counts for nothing: loss and gradient are 0, and its logits are not read."""
