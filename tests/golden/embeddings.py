"""Losses of vectors, taken through the objective as in training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from app.recipe.losses import Contrastive, NtXent
from tests.golden import Case, NothingToCompare
from tests.golden.comparison import Comparison, evaluate
from worker.data.class_batches import rank_order
from worker.losses.base import LossInputs


def ntxent(case: Case) -> Iterator[Comparison]:
    """Two views of each sample, also as the two texts of a pair; SimCLR's own value is twice the mean.

    Of G-SimCLR also the order of samples by pseudo labels. Raises NothingToCompare for a case with neither.
    """
    if "hidden" in case.inputs:
        views, scale = case.inputs["hidden"].chunk(2), 2.0
    elif "zi" in case.inputs:
        views, scale = (case.inputs["zi"], case.inputs["zj"]), 1.0
    elif "order" in case.outputs:
        found = rank_order(case.inputs["labels"])
        yield Comparison("pseudo-labels", "order", found.double(), case.outputs["order"].double())
        return
    else:
        raise NothingToCompare("no pair of views, and no order of batches")
    vectors = torch.stack(views, 1).flatten(0, 1)
    texts = torch.stack([torch.zeros(len(vectors)), torch.arange(len(vectors))], 1)
    temperature, unlabelled = case.hyper["temperature"], torch.zeros(len(vectors), dtype=torch.int64)
    yield from _compared(
        case, Contrastive(temperature=temperature, anchors="both", others="all"), vectors, texts, scale
    )
    yield from _compared(case, NtXent(temperature=temperature, projection="none"), vectors, unlabelled, scale)


def _compared(
    case: Case, spec: Contrastive | NtXent, vectors: Tensor, labels: Tensor, scale: float
) -> Iterator[Comparison]:
    loss, gradient = evaluate([spec], LossInputs(vectors, labels, None, rows_per_sample=2))
    yield Comparison(spec.kind, "loss", scale * loss, case.outputs["loss"])
    if "loss_mean_2B" in case.outputs:
        yield Comparison(spec.kind, "loss_mean_2B", loss, case.outputs["loss_mean_2B"])
    yield from _gradients(case, spec.kind, scale * gradient)


def _gradients(case: Case, kind: str, found: Tensor) -> Iterator[Comparison]:
    sides = found[0::2], found[1::2]
    if "grad_hidden" in case.outputs:
        yield Comparison(kind, "grad_hidden", torch.cat(sides), case.outputs["grad_hidden"], is_gradient=True)
    else:
        for name, side in zip(("grad_zi", "grad_zj"), sides, strict=True):
            yield Comparison(kind, name, side, case.outputs[name], is_gradient=True)
