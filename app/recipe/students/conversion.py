"""Students that are a teacher in another form."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import StringConstraints

from app.recipe.base import Option, Paper


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
