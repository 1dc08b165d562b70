"""Students that are made of a teacher: smaller copies of it, and equals with other layers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from app.recipe.base import Option, Paper

Width = Annotated[int, Field(ge=1, le=16_384)]
Numbers = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=1000)]
"""Numbers of layers, or of a layer's heads, from 0."""


class Shrink(Option):
    """The teacher's architecture with fewer or narrower layers or fewer heads, initialised from the teacher's
    weights."""

    paper: ClassVar[Paper | None] = Paper("DistilBERT, a distilled version of BERT", "1910.01108")
    architecture: Literal["shrink"] = "shrink"
    teacher: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Name of the teacher to shrink; none: the first one."""
    layers: Annotated[int, Field(ge=1)] | Numbers | None = None
    """Number of layers to keep, evenly chosen from the first to the last; or the numbers of those to keep, from 0. For
    a residual network: blocks of each stage, always with the first one. None: all."""
    width: Width | None = None
    """Size of a token's embedding, or channels of the first stage; the leading part of each weight is kept. None: the
    teacher's."""
    heads: Annotated[int, Field(ge=1)] | Numbers | None = None
    """Number of a transformer's attention heads to keep in each layer, the leading ones; or the numbers of those to
    keep, from 0. Every kept head of keys and values must keep the same number of heads that share it. None: as many as
    fit `width`, because heads keep their size; if heads make up the width, as in `gpt2`, only `width` can be
    reduced."""
    hidden: Width | None = None
    """Width of a transformer's feed-forward layers; none: shrunk like `width`."""
    init: Literal["teacher", "fresh"] = "teacher"
    """Source of the weights."""

    @model_validator(mode="after")
    def _shrinks(self) -> Self:
        for field, given in (("layers", self.layers), ("heads", self.heads)):
            if isinstance(given, list) and sorted(set(given)) != given:
                raise ValueError(f"{field} must rise")
        return self

    @property
    def sizes(self) -> list[str]:
        """Names of the sizes that are given."""
        return [field for field in ("layers", "width", "heads", "hidden") if getattr(self, field) is not None]


class Convert(Option):
    """The teacher, a vision transformer with layer norms before its layers, as an equal network with cheaper norms: the
    same function before any training.

    Scales and offsets of the norms are folded into the linear layers behind them, and all that is added to the tokens
    is given a mean of zero, so that a layer norm is a root mean square norm.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers", "2305.14858"
    )
    architecture: Literal["convert"] = "convert"
    teacher: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Name of the teacher to convert; none: the first one."""
    to: Literal["pre-rmsnorm", "pre-crmsnorm"] = "pre-rmsnorm"
    """`pre-rmsnorm`: norms of kind `rms`; `pre-crmsnorm`: norms of kind `crms`, and tokens with one number fewer, which
    is minus the sum of the others."""
