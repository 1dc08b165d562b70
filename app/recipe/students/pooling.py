"""The vector of an embedding model: of a text by pooling, of an image by a linear layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.recipe.base import Spec

Pooling = Literal["mean", "cls"]


class Embedding(Spec):
    """Operations after the network's last layer, in the exported model as well."""

    pooling: Pooling = "mean"
    """The vector of a text: the `mean` of the tokens that aren't padding, special ones included, or the first one
    (`cls`)."""
    normalise: bool = False
    """Divides the vector by its length, so that products of vectors are cosines."""
    dimensions: int | None = Field(None, ge=2, le=4096, exclude_if=lambda value: value is None)
    """For images: numbers of a vector, the outputs of the last linear layer; none: those of the model that the student
    starts from, else 128. A text's vector is as wide as its encoder."""
