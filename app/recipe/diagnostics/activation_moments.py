"""Moments of the activations of a network, layer by layer."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.base import EVERY_ANSWER, Answer, Paper
from app.recipe.diagnostics.base import DiagnosticSpec


class ActivationMoments(DiagnosticSpec):
    """Mean and variance of the outputs of every activation of the student and of every teacher, over all held-out
    samples and units, from the first to the last.

    In a self-normalising network they stay near 0 and 1; a variance that falls or grows from layer to layer is a signal
    that vanishes or explodes with depth.
    """

    paper: ClassVar[Paper | None] = Paper("Self-Normalizing Neural Networks", "1706.02515")
    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER - {"anomalies", "tokens"}
    applies: ClassVar[str] = (
        "Every task but `causal-lm` and `anomaly-detection`; networks whose activations are modules."
    )
    kind: Literal["activation-moments"] = "activation-moments"
