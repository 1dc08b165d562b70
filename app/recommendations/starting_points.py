"""Recipes to start with where the past of a project has nothing to go by: the page `docs/choosing.md` lists them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from app.recipe.base import Answer


class StartingPoint(NamedTuple):
    """A recipe for all tasks with one kind of output."""

    name: str
    answers: Answer
    losses: tuple[dict[str, Any], ...]
    reason: str
    """Where it was measured, or that it was not."""

    @property
    def recipe(self) -> dict[str, Any]:
        """As `recipe` of a job; the rest are defaults by student."""
        return {"losses": [dict(loss) for loss in self.losses]}


_CROSS_ENTROPY = {"kind": "cross-entropy"}
STARTING_POINTS: tuple[StartingPoint, ...] = (
    StartingPoint(
        "kd",
        "classes",
        ({**_CROSS_ENTROPY, "weight": 0.1}, {"kind": "kd", "weight": 0.9}),
        "1.0 points above training alone on digits, and 5.7 on CIFAR-10",
    ),
    StartingPoint(
        "logit-mse",
        "classes",
        (_CROSS_ENTROPY, {"kind": "logit-mse"}),
        "0.8 points above training alone on digits, and 5.7 on CIFAR-10",
    ),
    StartingPoint(
        "dkd",
        "classes",
        (_CROSS_ENTROPY, {"kind": "dkd"}),
        "1.7 points above training alone on digits, and 5.1 on CIFAR-10",
    ),
    StartingPoint(
        "nkd",
        "classes",
        (_CROSS_ENTROPY, {"kind": "nkd"}),
        "0.8 points above training alone on digits, and 4.2 on CIFAR-10, with a small calibration error on both",
    ),
    StartingPoint(
        "kd of tokens",
        "tokens",
        ({**_CROSS_ENTROPY, "weight": 0.3}, {"kind": "kd", "weight": 0.7, "temperature": 1.0}),
        "perplexity 0.889 times that of training alone on a text of a million characters",
    ),
    StartingPoint(
        "skew-kl of tokens",
        "tokens",
        ({**_CROSS_ENTROPY, "weight": 0.3}, {"kind": "skew-kl", "weight": 0.7}),
        "perplexity 0.938 times that of training alone on a text of a million characters",
    ),
    StartingPoint(
        "vectors and their similarities",
        "vectors",
        ({"kind": "embedding-distance", "distance": "cosine"}, {"kind": "similarity-matrix", "compare": "mse"}),
        "needs no scores: Spearman 0.66 on the STS Benchmark, where the teacher has 0.735; with all scores, training"
        " without a teacher was better",
    ),
    StartingPoint(
        "kd of labels",
        "labels",
        ({"kind": "binary-cross-entropy"}, {"kind": "binary-kd", "temperature": 2.0}),
        "not compared with other losses here: the usual losses of the task",
    ),
    StartingPoint(
        "numbers of both",
        "numbers",
        ({"kind": "mse"}, {"kind": "mse", "target": "teacher", "weight": 0.5}),
        "not compared with other losses here: the usual losses of the task",
    ),
    StartingPoint(
        "features of normal images",
        "anomalies",
        ({"kind": "feature-reconstruction"}, {"kind": "prototype-coherence", "weight": 0.2}),
        "not compared with other losses here: the losses and weights of INP-Former",
    ),
)
"""In the order in which they are recommended for their kind of output."""


def table() -> str:
    """The rows of the page, in Markdown."""
    rows = [f"| {point.answers} | `{json.dumps(list(point.losses))}` | {point.reason} |" for point in STARTING_POINTS]
    return "\n".join(["| output | `losses` | why |", "|---|---|---|", *rows])
