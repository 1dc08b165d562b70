"""Calibration: whether a classifier is right as often as it is confident."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, Paper
from app.recipe.diagnostics.base import DiagnosticSpec
from app.recipe.problem import Problem


class Calibration(DiagnosticSpec):
    """Reliability diagram and calibration errors of student and teacher, before and after temperature scaling.

    The temperature that divides the logits is the one with the smallest negative log-likelihood on half of the held-out
    samples; everything is measured on the other half. The exported weights are not changed. In token-classification
    samples are texts, and what is counted of them are the words that have a token.
    """

    paper: ClassVar[Paper | None] = Paper("On Calibration of Modern Neural Networks", "1706.04599")
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    applies: ClassVar[str] = "Single-label classification, of samples or of the words of texts."
    fits: ClassVar[bool] = True
    kind: Literal["calibration"] = "calibration"
    bins: int = Field(15, ge=2, le=100)
    """Bins of the confidences: once of equal width, once with equally many samples in each."""

    def problems(self, path: str, judged: int) -> Iterator[Problem]:
        """Problem of fewer samples than bins."""
        if judged < self.bins:
            found = (
                f"is {self.bins}, and {judged} held-out samples are left to measure on: the others fit the temperature"
            )
            fewer = f"at most {judged}, or " if judged >= 2 else ""
            yield Problem(f"{path}.bins", found, f"{fewer}{2 * self.bins} held-out samples or more")
