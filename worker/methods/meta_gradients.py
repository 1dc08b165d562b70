"""Gradient of a quiz's loss at the teacher's weights, through pilot updates of the student (MetaDistil, 2106.04570).

A pilot update is theta' = theta - eta dL/dtheta, in which the student's weights are theta and L depends on the
teacher's weights phi. So dQ/dphi = -eta (dQ/dtheta') d^2 L/(dtheta dphi), and the chain rule continues through earlier
updates. All sums over processes are of vectors of the size of the student or of the teacher: of L's gradient before
an update, of Q's gradient after it, and of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Weights of the student, floating, by name."""
Loss = Callable[[Weights], Tensor]
"""A loss, floating scalar, at given weights of the student: this process's share of a sum over all processes."""
SumAll = Callable[[Sequence[Tensor]], list[Tensor]]
"""Sums of floating tensors, one by one, over all processes."""


class PilotLoss(NamedTuple):
    """The student's loss on one batch, as a function of the weights of both networks."""

    teach: Callable[[], list[Tensor]]
    """Computes the teacher's logits (B, ...), and its activations that the loss uses, with a graph."""
    loss: Callable[[Weights, Sequence[Tensor]], Tensor]
    """The student's loss (see `Loss`) at given weights, logits and activations of the teacher."""


class MetaGradient(NamedTuple):
    """The gradient at the teacher's weights, and the losses that it was computed from."""

    pilot: Tensor
    """The student's loss before the last pilot update: this process's share, a floating scalar."""
    quiz: Tensor
    """The quiz's loss after it: the same."""
    gradients: list[Tensor]
    """dQ/dphi over all processes, one for each of the teacher's parameters."""


def second_order(
    weights: Weights, pilots: Sequence[PilotLoss], quiz: Loss, teacher: Sequence[Tensor], lr: float, sum_all: SumAll
) -> MetaGradient:
    """The exact gradient, through one pilot update for each of `pilots`, at the teacher's parameters `teacher`."""
    updates: list[tuple[list[Tensor], list[Tensor]]] = []
    names, current = list(weights), [weight.detach() for weight in weights.values()]
    for pilot in pilots:
        leaves = _leaves(current)
        loss = pilot.loss(_named(names, leaves), pilot.teach())
        gradients = _gradients(loss, leaves, create_graph=True)
        current = _moved(leaves, sum_all([gradient.detach() for gradient in gradients]), -lr)
        updates.append((leaves, gradients))
    leaves = _leaves(current)
    asked = quiz(_named(names, leaves))
    adjoint = sum_all(_gradients(asked, leaves))
    found = [torch.zeros_like(parameter) for parameter in teacher]
    for number, (leaves, gradients) in reversed(list(enumerate(updates))):
        earlier = leaves if number else []  # nothing before the first update depends on the teacher
        products = _products(gradients, [-lr * each for each in adjoint], [*teacher, *earlier])
        found = [total + product for total, product in zip(found, products, strict=False)]
        adjoint = [each + product for each, product in zip(adjoint, sum_all(products[len(teacher) :]), strict=False)]
    return MetaGradient(loss.detach(), asked.detach(), sum_all(found))


def finite_difference(
    weights: Weights,
    pilot: PilotLoss,
    quiz: Loss,
    teacher: Sequence[Tensor],
    lr: float,
    sum_all: SumAll,
    epsilon: float,
) -> MetaGradient:
    """The gradient through one pilot update by a central difference: of dL/dphi at weights of the student that are
    moved by `epsilon` along the quiz's gradient v, and against it, times -eta |v| / (2 epsilon). The error is of the
    order of epsilon squared; no gradient is differentiated."""
    names, current = list(weights), [weight.detach() for weight in weights.values()]
    taught = pilot.teach()
    constant, leaves = [each.detach() for each in taught], _leaves(current)
    loss = pilot.loss(_named(names, leaves), constant)
    leaves = _leaves(_moved(leaves, sum_all(_gradients(loss, leaves)), -lr))
    asked = quiz(_named(names, leaves))
    direction = sum_all(_gradients(asked, leaves))
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in direction]))
    step = epsilon / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    sides = [
        _at_taught(pilot, _named(names, _moved(current, direction, sign * step)), constant) for sign in (1.0, -1.0)
    ]
    factor = -lr / (2.0 * step)
    products = [(above - below) * factor.to(above.dtype) for above, below in zip(*sides, strict=True)]
    return MetaGradient(loss.detach(), asked.detach(), sum_all(_products(taught, products, teacher)))


def _at_taught(pilot: PilotLoss, weights: Weights, taught: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the student's loss at the teacher's logits and activations."""
    leaves = _leaves(taught)
    return _gradients(pilot.loss(weights, leaves), leaves)


def _leaves(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.detach().requires_grad_() for value in values]


def _named(names: Sequence[str], values: Sequence[Tensor]) -> Weights:
    return dict(zip(names, values, strict=True))


def _moved(values: Sequence[Tensor], along: Sequence[Tensor], by: float | Tensor) -> list[Tensor]:
    return [value.detach() + by * each for value, each in zip(values, along, strict=True)]


def _gradients(loss: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Gradients of a scalar; 0 for weights that it does not depend on."""
    found = torch.autograd.grad(
        loss, list(leaves), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return list(found)


def _products(outputs: Sequence[Tensor], vectors: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Sum over `outputs` of the products of `vectors` with their derivatives at `inputs`."""
    pairs = [pair for pair in zip(outputs, vectors, strict=True) if pair[0].requires_grad]
    if not pairs:
        return [torch.zeros_like(each) for each in inputs]
    kept, along = zip(*pairs, strict=True)
    return list(torch.autograd.grad(kept, list(inputs), along, allow_unused=True, materialize_grads=True))
