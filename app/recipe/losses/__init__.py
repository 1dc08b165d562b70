"""The loss terms that a recipe may weigh together. Each has one class of the same kind in `worker/losses`.

Notation of the equations: y the label, C the number of classes, p the teacher's and q the student's probabilities,
softmax(logits / T) over the classes; T is `temperature`, and 1 where a term has none. A loss is the mean over the rows.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from app.recipe.losses.base import LossTerm, Softened, Temperature
from app.recipe.losses.logits import (
    Akl,
    BdKd,
    CrossEntropy,
    Dist,
    Dkd,
    Jsd,
    Kd,
    KdPt,
    KdRel,
    KdSim,
    KdTopk,
    LogitMse,
    Nkd,
    ReverseKl,
    SkewKl,
    SkewReverseKl,
    Tvd,
)

__all__ = [
    "LOSSES",
    "Akl",
    "BdKd",
    "CrossEntropy",
    "Dist",
    "Dkd",
    "Jsd",
    "Kd",
    "KdPt",
    "KdRel",
    "KdSim",
    "KdTopk",
    "LogitMse",
    "Loss",
    "LossTerm",
    "Nkd",
    "ReverseKl",
    "SkewKl",
    "SkewReverseKl",
    "Softened",
    "Temperature",
    "Tvd",
]

Loss = Annotated[
    CrossEntropy
    | Kd
    | Nkd
    | LogitMse
    | Dkd
    | Dist
    | BdKd
    | ReverseKl
    | Jsd
    | SkewKl
    | SkewReverseKl
    | Tvd
    | Akl
    | KdPt
    | KdSim
    | KdTopk
    | KdRel,
    Field(discriminator="kind"),
]
LOSSES: tuple[type[LossTerm], ...] = get_args(get_args(Loss)[0])
"""All kinds."""
