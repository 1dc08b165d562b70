"""Compares exported files with the live model: a job must not publish another model than it trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from worker.errors import SystemFault
from worker.tasks.base import Metrics

TOLERANCE = 1e-4
"""Largest difference between the outputs of an exported file and those of the live model, relative to the largest
output or to 1. In float32 other orders of summation were measured to differ by some 1e-6."""


QUANTISED_TOLERANCE = 0.05
"""The same for the graph of a quantised student. Another order of summation may move a value across the boundary of two
codes, and so by a whole step: of 7 architectures some samples in a hundred were measured to differ, by at most 0.01 of
the largest output or of 1, and the mean by some 1e-5."""


def require_same(name: str, exported: Tensor, live: Tensor, allowed: float) -> None:
    """Raise SystemFault (`export_mismatch`) if the outputs (N, C) float32 of an exported file differ by more than
    `allowed`."""
    worst = float((exported - live).abs().max())
    if not worst <= allowed:
        raise SystemFault(
            "export_mismatch",
            f"{name} returns other outputs than the trained model: by {worst:.2e}, allowed {allowed:.2e}",
        )


def require_finite(name: str, exported: Tensor) -> None:
    """Raise SystemFault (`export_mismatch`) if an output (N, C) float32 of an inexact file is not finite."""
    if not bool(exported.isfinite().all()):
        raise SystemFault("export_mismatch", f"{name} returns outputs that are not finite")


def require_same_metrics(name: str, exported: Metrics, live: Metrics, slacks: Iterable[tuple[str, float]]) -> None:
    """Raise SystemFault (`export_mismatch`) if the metrics of an exported file are not the live model's.

    Compared are the metrics with a bound that follows from the tolerance of outputs: `slacks` (see `Task.tolerances`).
    """
    for metric, slack in slacks:
        if not abs(exported[metric] - live[metric]) <= slack + 1e-12:
            found = f"{metric} {exported[metric]:.6f}, the trained model {live[metric]:.6f}"
            raise SystemFault("export_mismatch", f"{name} has {found}")


def allowed_difference(live: Tensor, tolerance: float = TOLERANCE) -> float:
    """Largest difference to the live model's outputs (N, C) float32 that another order of summation may explain."""
    return tolerance * max(1.0, float(live.abs().max()))
