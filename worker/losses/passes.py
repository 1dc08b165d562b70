"""Terms of an objective that the kernels compute (`worker.kernels`), grouped in passes over the logits."""

from __future__ import annotations

from typing import NamedTuple

from app.recipe.losses import CrossEntropy, Loss, Softened
from worker.kernels.spec import Divergence, RowSpec
from worker.losses.divergences import divergence_of


class Pass(NamedTuple):
    """Terms that one pass computes, by their names in the objective."""

    cross_entropy: str | None
    divergence: str | None
    teacher: str | None

    def spec(self, plain: Loss | None, taught: Loss | None, hard: float, soft: float) -> RowSpec:
        """The kernel's settings for the cross-entropy `plain` with weight `hard` and the divergence `taught` with
        weight `soft`."""
        smoothing = plain.label_smoothing if isinstance(plain, CrossEntropy) else 0.0
        divergence = None if taught is None else kernel_divergence(taught)
        return RowSpec(divergence, divergence_weight=soft, ce_weight=hard, label_smoothing=smoothing)


def kernel_divergence(spec: Loss) -> Divergence | None:
    """The divergence by which a pass computes a term; none: the kernels don't have it, such as on standardised
    logits."""
    return None if isinstance(spec, Softened) and spec.standardize else divergence_of(spec)


def in_kernels(spec: Loss) -> bool:
    """Whether a pass computes a term."""
    return isinstance(spec, CrossEntropy) or kernel_divergence(spec) is not None
