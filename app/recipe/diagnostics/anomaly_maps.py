"""Anomaly maps: pictures of where held-out images differ from normal ones."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, InputKind, Paper
from app.recipe.diagnostics.base import DiagnosticSpec
from app.recipe.losses.reconstruction import INP_FORMER


class AnomalyMaps(DiagnosticSpec):
    """Heat maps of held-out images over the images, with the contours of their masks if there are any: anomalous
    images first, at equal distances among their scores, and then as many normal ones. All share one scale of colours.
    """

    paper: ClassVar[Paper | None] = INP_FORMER
    answers: ClassVar[frozenset[Answer]] = frozenset({"anomalies"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    applies: ClassVar[str] = "Anomaly detection."
    kind: Literal["anomaly-maps"] = "anomaly-maps"
    images: int = Field(8, ge=2, le=64)
    """Images in the picture: half of them anomalous and half normal, as far as there are so many."""
