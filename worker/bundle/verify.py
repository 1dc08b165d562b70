"""Holds exported files against the live model: a job that publishes something else than it trained must fail."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.tasks.task import CAUSAL_LM, CLASSIFICATION, EMBEDDING
from worker.errors import SystemFault
from worker.tasks.evaluation import MAIN_METRICS, Metrics, judge

TOLERANCE = 1e-4
"""Largest difference between the outputs of an exported file and those of the live model, relative to the largest
output or to 1. In float32 other orders of summation were seen to differ by some 1e-6."""


def require_same(name: str, exported: Tensor, live: Tensor) -> None:
    """Raise SystemFault (`export_mismatch`) when the outputs (N, C) of an exported file leave the tolerance."""
    allowed = _allowed(live)
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


def require_same_metrics(
    name: str, job: JobSpec, exported: Metrics, live: Metrics, outputs: Tensor, targets: Tensor
) -> None:
    """Raise SystemFault (`export_mismatch`) when the metrics of an exported file are not the live model's.

    `outputs` (N, C) are the live model's. Compared is what the tolerance allows a bound for: logits that differ within
    it may swap two choices only where these are that close, and may move the NLL by twice the difference, while the
    calibration error jumps at the edges of its bins; numbers move the error of a regression by at most what an error of
    that size in all of them would amount to.
    """
    for metric, slack in _slacks(job, outputs, targets):
        if not abs(exported[metric] - live[metric]) <= slack + 1e-12:
            found = f"{metric} {exported[metric]:.6f}, the trained model {live[metric]:.6f}"
            raise SystemFault("export_mismatch", f"{name} has {found}")


def _slacks(job: JobSpec, outputs: Tensor, targets: Tensor) -> Iterator[tuple[str, float]]:
    allowed = _allowed(outputs)
    if job.task == CAUSAL_LM:
        yield "nll", 2 * allowed
    elif job.task in CLASSIFICATION:
        best = outputs.topk(2, dim=-1).values
        yield "accuracy", float((best[:, 0] - best[:, 1] <= 2 * allowed).double().mean())
        yield "nll", 2 * allowed
    elif job.task != EMBEDDING:  # ranks jump where two cosines are that close
        main = MAIN_METRICS[job.task].name
        yield main, judge(job.task, targets + allowed, targets, job.evaluation).metrics[main]


def _allowed(live: Tensor) -> float:
    return TOLERANCE * max(1.0, float(live.abs().max()))
