"""Losses of labels that are there or not, taken through the objective as in training."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.losses import BinaryCrossEntropy, BinaryKd
from tests.golden import Case
from tests.golden.comparison import Comparison, compare, evaluate, rows_of


def mld(case: Case) -> Iterator[Comparison]:
    """The authors add the classes up, and where they say `sum` the rows too; here both are means."""
    rows, spec = rows_of(case), BinaryKd() if case.hyper["term"] == "mld" else BinaryCrossEntropy()
    count, classes = rows.student.shape
    factor = {"batchmean": classes, "sum": count * classes, "mean": 1}[case.hyper["reduction"]]
    value, gradient = evaluate([spec], rows)
    yield from compare(case, spec.kind, (factor * value, factor * gradient), "loss", "grad_logit_s")
