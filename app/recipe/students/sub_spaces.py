"""Sub-spaces of an architecture: sizes of the networks that a search chooses from, relative to a teacher."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from app.recipe.base import Spec

MOST_NETWORKS = 256
"""Most sub-networks of a sub-space, as in the paper."""
Part = Annotated[float, Field(gt=0.0, le=1.0)]
Parts = Annotated[list[Part], Field(min_length=1, max_length=16)]
Ratio = Annotated[float, Field(gt=0.0, le=64.0)]


class SubNetwork(NamedTuple):
    """Sizes of a sub-network."""

    layers: int
    width: int
    """Size of a token's embedding."""
    heads: int
    hidden: int
    """Width of the feed-forward layers."""


class SubSpace(Spec):
    """Values of each size; every combination is a sub-network. The heads keep the teacher's size and make up the
    width."""

    layers: Parts
    """Numbers of layers, as shares of the teacher's; rounded to whole layers."""
    width: Parts
    """Widths, as shares of the teacher's; rounded to whole heads, whose number follows."""
    ffn_ratio: Annotated[list[Ratio], Field(min_length=1, max_length=16)]
    """Widths of the feed-forward layers, in widths of the same network; at most the teacher's."""

    @model_validator(mode="after")
    def _is_searchable(self) -> Self:
        count = len(self.layers) * len(self.width) * len(self.ffn_ratio)
        if count > MOST_NETWORKS:
            raise ValueError(f"layers, width and ffn_ratio have {count} combinations; accepted: up to {MOST_NETWORKS}")
        return self

    def networks(self, teacher: SubNetwork) -> list[SubNetwork]:
        """All sub-networks for a teacher of these sizes, without those that are equal after rounding: the largest is
        the first, the smallest the last."""
        head = teacher.width // teacher.heads
        depths = _falling(max(1, round(part * teacher.layers)) for part in self.layers)
        heads = _falling(max(1, round(part * teacher.heads)) for part in self.width)
        ratios = sorted(self.ffn_ratio, reverse=True)
        found = [
            SubNetwork(layers, count * head, count, max(1, min(round(ratio * count * head), teacher.hidden)))
            for layers, count, ratio in product(depths, heads, ratios)
        ]
        return list(dict.fromkeys(found))


def kept_of(layers: int, of: int) -> list[int]:
    """Numbers of the layers that a sub-network of `layers` layers has, in a network of `of` layers."""
    return [number * of // layers for number in range(layers)]


def _falling(values: Iterable[int]) -> list[int]:
    return sorted(set(values), reverse=True)


Preset = Literal["base", "small", "tiny"]
PRESETS: dict[Preset, SubSpace] = {
    "base": SubSpace(
        layers=[9 / 12, 10 / 12, 11 / 12, 1.0],
        width=[17 / 24, 18 / 24, 19 / 24, 20 / 24],
        ffn_ratio=[2.5, 3.0, 3.5, 4.0],
    ),
    "small": SubSpace(
        layers=[9 / 12, 10 / 12, 11 / 12, 1.0],
        width=[8 / 24, 9 / 24, 10 / 24, 11 / 24],
        ffn_ratio=[2.5, 3.0, 3.5, 4.0],
    ),
    "tiny": SubSpace(
        layers=[4 / 12, 5 / 12, 6 / 12, 7 / 12],
        width=[4 / 24, 5 / 24, 6 / 24, 7 / 24],
        ffn_ratio=[2.0, 2.5, 3.0, 3.5],
    ),
}
"""The paper's sub-spaces, without its own range of heads."""
