"""Loss terms, one module per family, and the objective that weighs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.recipe.losses import CrossEntropy, Kd, LossTerm, Nkd
from worker.losses.base import Term
from worker.losses.cross_entropy import CrossEntropyTerm
from worker.losses.kd import KdTerm
from worker.losses.nkd import NkdTerm

TERMS: dict[type[LossTerm], Callable[[Any], Term]] = {CrossEntropy: CrossEntropyTerm, Kd: KdTerm, Nkd: NkdTerm}


def build_term(spec: LossTerm) -> Term:
    """The term that `spec` describes, without its weight."""
    return TERMS[type(spec)](spec)
