"""Losses of vectors, taken through the objective as in training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from app.recipe.losses import Contrastive
from tests.golden import Case, NothingToCompare
from tests.golden.comparison import Comparison, evaluate
from worker.losses.base import LossInputs

KIND = "contrastive"


def ntxent(case: Case) -> Iterator[Comparison]:
    """Two views of each sample as the two texts of a pair; SimCLR's own value is twice the mean.

    Raises NothingToCompare for cases about the order of batches.
    """
    if "hidden" in case.inputs:
        views, scale = case.inputs["hidden"].chunk(2), 2.0
    elif "zi" in case.inputs:
        views, scale = (case.inputs["zi"], case.inputs["zj"]), 1.0
    else:
        raise NothingToCompare("no pair of views; batches of pseudo-labels are not drawn here")
    vectors = torch.stack(views, 1).flatten(0, 1)
    labels = torch.stack([torch.zeros(len(vectors)), torch.arange(len(vectors))], 1)
    spec = Contrastive(temperature=case.hyper["temperature"], anchors="both", others="all")
    loss, gradient = evaluate([spec], LossInputs(vectors, labels, None))
    yield Comparison(KIND, "loss", scale * loss, case.outputs["loss"])
    if "loss_mean_2B" in case.outputs:
        yield Comparison(KIND, "loss_mean_2B", loss, case.outputs["loss_mean_2B"])
    yield from _gradients(case, scale * gradient)


def _gradients(case: Case, found: Tensor) -> Iterator[Comparison]:
    sides = found[0::2], found[1::2]
    if "grad_hidden" in case.outputs:
        yield Comparison(KIND, "grad_hidden", torch.cat(sides), case.outputs["grad_hidden"], is_gradient=True)
    else:
        for name, side in zip(("grad_zi", "grad_zj"), sides, strict=True):
            yield Comparison(KIND, name, side, case.outputs[name], is_gradient=True)
