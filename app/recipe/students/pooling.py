"""Pooling of a sentence encoder to one vector of a text."""

from __future__ import annotations

from typing import Literal

from app.recipe.base import Spec


class Embedding(Spec):
    """Operations after the encoder's last layer, in the exported model as well."""

    pooling: Literal["mean", "cls"] = "mean"
    """The vector: the `mean` of the tokens that aren't padding, special ones included, or the first one (`cls`)."""
    normalise: bool = False
    """Divides the vector by its length, so that products of vectors are cosines."""
