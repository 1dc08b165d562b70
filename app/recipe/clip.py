"""Bounds within which the inputs of a network are moved."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

Bound = Annotated[float, Field(allow_inf_nan=False)]


def _in_order(clip: list[float] | None) -> list[float] | None:
    if clip is not None and (len(clip) != 2 or clip[0] >= clip[1]):
        raise ValueError("must be a lowest and a highest value, in this order")
    return clip


Clip = Annotated[Annotated[list[Bound], Field(max_length=2)] | None, AfterValidator(_in_order)]
"""Lowest and highest value in normalised units; none: those of pixels."""
