"""Loss terms for students that reconstruct a teacher's features; notation as in `features`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import InputKind, Paper
from app.recipe.losses.features import FeatureTerm, PartName
from app.recipe.losses.taps import Pair, Taps, taps_of


class InpFormer(FeatureTerm):
    """Soft mining loss of INP-Former: cosine of whole maps, with larger gradients where the student is worst.

    A position is a pixel of a map or a token, and d its distance 1 - cos over the channels. The gradient at the
    student's feature is multiplied there by w; if all d are 0, w is 1. The value is that without mining, as in the
    authors' code; the paper has w in the loss, which has the same gradient.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Exploring Intrinsic Normal Prototypes within a Single Image for Universal Anomaly Detection", "2503.02424"
    )
    couples_rows: ClassVar[bool] = True
    gathers: ClassVar[bool] = True
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    equation: ClassVar[str] = (
        "mean over pairs of 1 - cos(r(s), t) of whole maps; gradients at r(s) times w = (d / mean d)^gamma at each "
        "position, mean over the positions of the batch"
    )
    applies: ClassVar[str] = (
        "Tasks on images; maps or tokens of a teacher. Not with `accumulate` above 1; several processes use the mean "
        "of all."
    )
    kind: Literal["inp-former"] = "inp-former"
    pairs: list[Pair] = Field(min_length=1, max_length=32)
    """Which features are compared."""
    gamma: float = Field(3.0, ge=0.0, le=16.0)
    """Power of the relative distances; 0 is the plain cosine, without mining."""
    adapter: Literal["auto", "linear", "conv1x1", "none"] = "auto"
    """Maps the student's width to the teacher's, as in `hint`."""
    name: PartName = "inp-former"
    """Name of the adapters: terms and stages with the same name share them if their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)
