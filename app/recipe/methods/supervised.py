"""Training on the data alone."""

from __future__ import annotations

from typing import Literal

from app.recipe.methods.base import MethodSpec


class Supervised(MethodSpec):
    """One optimizer step per batch of the data: the gradient of the objective at the student's weights."""

    kind: Literal["supervised"] = "supervised"
