"""The diagnostics of a job. Each has one class of the same kind in `worker/diagnostics`."""

from __future__ import annotations

from typing import Annotated

from app.recipe.base import OneOf
from app.recipe.diagnostics.activation_moments import ActivationMoments
from app.recipe.diagnostics.anomaly_maps import AnomalyMaps
from app.recipe.diagnostics.base import DiagnosticSpec
from app.recipe.diagnostics.calibration import Calibration
from app.recipe.diagnostics.curvature import Hessian, LossLandscape
from app.recipe.diagnostics.decision_boundary import DecisionBoundary
from app.recipe.diagnostics.frozen_features import LinearEvaluation, WideDeep
from app.recipe.diagnostics.mahalanobis import Mahalanobis
from app.recipe.diagnostics.robustness import Robustness

__all__ = [
    "DIAGNOSTICS",
    "ActivationMoments",
    "AnomalyMaps",
    "Calibration",
    "DecisionBoundary",
    "Diagnostic",
    "DiagnosticSpec",
    "Hessian",
    "LinearEvaluation",
    "LossLandscape",
    "Mahalanobis",
    "Robustness",
    "WideDeep",
    "parts_of",
]

DIAGNOSTICS: tuple[type[DiagnosticSpec], ...] = (
    Calibration,
    Robustness,
    DecisionBoundary,
    Mahalanobis,
    Hessian,
    LossLandscape,
    LinearEvaluation,
    WideDeep,
    ActivationMoments,
    AnomalyMaps,
)
"""All kinds."""
Diagnostic = Annotated[DiagnosticSpec, OneOf(DIAGNOSTICS)]


def parts_of(held_out: int, diagnostic: DiagnosticSpec) -> tuple[int, int]:
    """Numbers of the held-out samples that are (fitted on, measured on)."""
    fitted = held_out // 2 if diagnostic.fits else 0
    return fitted, diagnostic.judged(held_out - fitted)
