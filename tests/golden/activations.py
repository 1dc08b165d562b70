"""Activations of self-normalising networks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.students.layers.activations import alpha_dropout, selu

KIND = "selu"
NODES, REACH = 400, 12
"""Points of a quadrature on each side of 0, and the standard deviations that they reach to."""


def self_normalising(case: Case) -> Iterator[Comparison]:
    """Values and gradients, dropout with a given mask, and how mean and variance change in a layer."""
    if "inp" in case.inputs:
        moments = torch.stack([_moments(mean, variance) for mean, variance in case.inputs["inp"].tolist()])
        yield Comparison(KIND, "out", moments, case.outputs["out"])
        return
    x = case.inputs["x"].clone().requires_grad_()
    if "keep" in case.inputs:
        y = alpha_dropout(x, case.inputs["keep"], case.hyper["rate"])
        name = "grad_multiplier"
    else:
        y, name = selu(x), "grad_x"
    yield Comparison(KIND, "y", y.detach(), case.outputs["y"])
    yield Comparison(KIND, name, torch.autograd.grad(y.sum(), x)[0], case.outputs[name], is_gradient=True)


def _moments(mean: float, variance: float) -> Tensor:
    """Mean and variance of `selu` of a normal variable, by Gauss-Legendre quadrature on both sides of its kink."""
    deviation = variance**0.5
    nodes, weights = (torch.from_numpy(each) for each in leggauss(NODES))
    total = torch.zeros(2, dtype=torch.float64)
    for end in (mean - REACH * deviation, mean + REACH * deviation):
        x = end / 2 * (nodes + 1)
        density = torch.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        powers = torch.stack([selu(x), selu(x).square()])
        total += (powers * density * weights).sum(-1) * abs(end) / 2
    return torch.stack([total[0], total[1] - total[0] ** 2])
