"""Holds exported files against the live model: a job that publishes something else than it trained must fail."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from worker.errors import SystemFault
from worker.tasks.base import Metrics

TOLERANCE = 1e-4
"""Largest difference between the outputs of an exported file and those of the live model, relative to the largest
output or to 1. In float32 other orders of summation were seen to differ by some 1e-6."""


def require_same(name: str, exported: Tensor, live: Tensor) -> None:
    """Raise SystemFault (`export_mismatch`) when the outputs (N, C) of an exported file leave the tolerance."""
    allowed = allowed_difference(live)
    worst = float((exported - live).abs().max())
    if not worst <= allowed:
        raise SystemFault(
            "export_mismatch",
            f"{name} gives other outputs than the trained model: by {worst:.2e}, allowed {allowed:.2e}",
        )


def require_finite(name: str, exported: Tensor) -> None:
    """Raise SystemFault (`export_mismatch`) when an output of a file that is free to differ is not even a number."""
    if not bool(exported.isfinite().all()):
        raise SystemFault("export_mismatch", f"{name} gives outputs that are not finite")


def require_same_metrics(name: str, exported: Metrics, live: Metrics, slacks: Iterable[tuple[str, float]]) -> None:
    """Raise SystemFault (`export_mismatch`) when the metrics of an exported file are not the live model's.

    Compared are the metrics that the tolerance of outputs allows a bound for: the `slacks` (see `Task.tolerances`).
    """
    for metric, slack in slacks:
        if not abs(exported[metric] - live[metric]) <= slack + 1e-12:
            found = f"{metric} {exported[metric]:.6f}, the trained model {live[metric]:.6f}"
            raise SystemFault("export_mismatch", f"{name} has {found}")


def allowed_difference(live: Tensor) -> float:
    """Largest difference to the live model's outputs (N, C) that is put down to another order of summation."""
    return TOLERANCE * max(1.0, float(live.abs().max()))
