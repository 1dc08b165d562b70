"""The files of a search: every sub-network with its costs and its loss, and the weights that they share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.recipe.base import Spec
from app.recipe.students.model import ModelConfig
from app.recipe.students.sub_spaces import SubNetwork

SEARCH, PICTURE = "search.json", "search.png"
Axis = Literal["width", "hidden"]


def weights_name(space: int) -> str:
    """Name of the file of the weights that the sub-networks of a sub-space share, which is counted from 0."""
    return "supernet.safetensors" if space == 0 else f"supernet-{space + 1}.safetensors"


class SearchRow(Spec):
    """One sub-network."""

    row: int = Field(ge=0)
    """Its number."""
    space: int = Field(ge=0)
    """Number of its sub-space, from 0."""
    layers: int = Field(ge=1)
    """Layers."""
    width: int = Field(ge=1)
    """Size of a token's embedding."""
    heads: int = Field(ge=1)
    """Attention heads."""
    hidden: int = Field(ge=1)
    """Width of the feed-forward layers."""
    parameters: int = Field(ge=0)
    """Weights."""
    flops: int = Field(ge=0)
    """Floating-point operations for one text of the longest length."""
    loss: float = Field(allow_inf_nan=False)
    """Objective on the held-out samples."""
    latency_ms: float | None = None
    """Milliseconds for one text by its ONNX graph, if measured."""
    pareto: bool = False
    """Whether no other one is as small, as cheap and as good, and better in something."""

    @property
    def sizes(self) -> SubNetwork:
        """Its sizes."""
        return SubNetwork(self.layers, self.width, self.heads, self.hidden)


class SearchedSpace(Spec):
    """The network that the sub-networks of one sub-space are leading slices of."""

    weights: str = Field(max_length=64)
    """File of its weights."""
    config: ModelConfig
    """Its description."""
    axes: dict[str, list[Axis | None]]
    """By the name of a tensor, the size that each of its axes follows; none: it is the same in all sub-networks."""


class SearchFile(Spec):
    """Content of `search.json`."""

    spaces: list[SearchedSpace] = Field(min_length=1)
    """The sub-spaces."""
    rows: list[SearchRow] = Field(min_length=1)
    """All sub-networks, in the order of their numbers."""
    chosen: int = Field(ge=0)
    """Number of the one that became the student."""
