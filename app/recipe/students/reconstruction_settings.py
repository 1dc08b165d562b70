"""Settings of networks that reconstruct the features of an encoder, whichever that is."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator

from app.recipe.base import Option, Paper
from app.recipe.losses.reconstruction import INP_FORMER
from app.recipe.losses.taps import PATH

ModulePath = Annotated[str, StringConstraints(max_length=512, pattern=PATH)]
"""A module within a network, as in `blocks.3`."""


class Reconstruction(Option):
    """Settings of a network that reconstructs the features of its frozen encoder from prototypes of each image."""

    paper: ClassVar[Paper | None] = INP_FORMER
    layers: list[Annotated[list[ModulePath], Field(min_length=1, max_length=64)]] = Field(min_length=1, max_length=8)
    """Modules of the encoder whose outputs are reconstructed, from the first to the last, in groups: the outputs of a
    group are averaged and compared with the mean of their reconstructions. All are tokens, or maps, of one shape. Of
    12 blocks of a vision transformer the paper takes `blocks.2` to `blocks.9` in two groups of four."""
    prototypes: int = Field(6, ge=1, le=256)
    """Normal prototypes that are extracted from each image."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads of extractor and decoder; a divisor of the width of the encoder's outputs."""
    mlp_ratio: float = Field(4.0, gt=0.0, le=16.0)
    """Width of the feed-forward layers as a multiple of the width of the encoder's outputs."""
    map_size: int = Field(64, ge=2, le=255)
    """Height and width of the anomaly map, which covers the whole image."""

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        if len(set(self.paths)) != len(self.paths):
            raise ValueError("layers must not name a module twice")
        return self

    @property
    def paths(self) -> list[str]:
        """Modules of all groups, in their order."""
        return [path for group in self.layers for path in group]

    @property
    def outputs(self) -> int:
        """Numbers of its output: the score of the image, and its map."""
        return 1 + self.map_size**2

    def hidden(self, width: int) -> int:
        """Width of the feed-forward layers between tokens of this width."""
        return max(1, round(self.mlp_ratio * width))
