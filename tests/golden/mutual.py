"""Deep mutual learning."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden import Case
from tests.golden.comparison import Comparison, compare
from worker.methods.mutual import mutual_loss

Comparisons = Iterator[Comparison]
SMOOTHED, SMOOTHED_GRADIENT = 1e-6, 1e-5
"""How far the authors' own program is from the exact divergence, for it adds 1e-8 within logarithms: a gradient is off
by the share that this has in a probability, of which the smallest are 2e-4 here."""


def dml(case: Case) -> Comparisons:
    """Cross-entropy and the divergence from the peers, of each peer."""
    logits = case.inputs["logits"]
    for number in range(len(logits)):
        for name, peer_reduce in (("avg", "mean"), ("sum", "sum")):
            own = logits[number].clone().requires_grad_()
            others = [peer for other, peer in enumerate(logits) if other != number]
            loss = F.cross_entropy(own, case.inputs["label"]) + mutual_loss(own, others, peer_reduce).mean()
            result = _with_gradient(loss, own)
            yield from compare(case, "mutual", result, f"loss_peer{number}_{name}", f"grad_logit_peer{number}_{name}")


def author_kl(case: Case) -> Comparisons:
    own = case.inputs["logits_self"].clone().requires_grad_()
    loss, gradient = _with_gradient(mutual_loss(own, [case.inputs["logits_peer"]]).mean(), own)
    yield Comparison("mutual", "loss", loss, case.outputs["loss"], within=SMOOTHED)
    expected = case.outputs["grad_logits_self"]
    yield Comparison("mutual", "grad_logits_self", gradient, expected, is_gradient=True, within=SMOOTHED_GRADIENT)


def _with_gradient(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient
