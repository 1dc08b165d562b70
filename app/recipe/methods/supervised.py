"""Training on the data alone."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.methods.base import MethodSpec


class Supervised(MethodSpec):
    """One optimizer step per batch of the data: the gradient of the objective at the student's weights."""

    plain_steps: ClassVar[bool] = True
    applies: ClassVar[str] = "Every task. The start of every comparison: losses alone, with a teacher or without."
    cost: ClassVar[str] = "None."
    kind: Literal["supervised"] = "supervised"
