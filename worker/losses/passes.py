"""What of an objective the kernels compute (`worker.kernels`), and in which passes over the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple, get_args

from app.recipe.losses import CrossEntropy, Loss, Softened
from worker.kernels.spec import Divergence, DivergenceKind, RowSpec

_KINDS: Sequence[str] = get_args(DivergenceKind)


class Pass(NamedTuple):
    """Terms that one pass computes, by their names in the objective."""

    cross_entropy: str | None
    divergence: str | None
    teacher: str | None

    def spec(self, plain: Loss | None, taught: Loss | None, hard: float, soft: float) -> RowSpec:
        """For the cross-entropy `plain` with the weight `hard` and the divergence `taught` with `soft`."""
        smoothing = plain.label_smoothing if isinstance(plain, CrossEntropy) else 0.0
        divergence = None if taught is None else divergence_of(taught)
        return RowSpec(divergence, divergence_weight=soft, ce_weight=hard, label_smoothing=smoothing)


def divergence_of(spec: Loss) -> Divergence | None:
    """What the kernels compute for a term; none: they don't know it, or it is no divergence."""
    kind = "forward-kl" if spec.kind == "kd" else spec.kind
    if kind not in _KINDS or (isinstance(spec, Softened) and spec.standardize):
        return None
    told = {each.name: getattr(spec, each.name) for each in fields(Divergence) if hasattr(spec, each.name)}
    return Divergence(**{**told, "kind": kind})


def in_kernels(spec: Loss) -> bool:
    """Whether a pass computes a term."""
    return isinstance(spec, CrossEntropy) or divergence_of(spec) is not None
