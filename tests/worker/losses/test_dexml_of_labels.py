"""DEXML of the logits of a multi-label task, compared with direct formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Dexml
from tests.worker.live_memory import peak_bytes
from worker.losses import dexml
from worker.losses.base import LossInputs
from worker.losses.dexml import DexmlTerm, Labelled, label_losses, log_soft_top_k
from worker.tensors import IGNORED

SPECS = [
    *(Dexml(criterion=criterion, k=2) for criterion in ("softmax", "decoupled", "bce", "top-k")),
    Dexml(weighted=True),
    Dexml(criterion="softmax", weighted=True, left_out="constant"),
]
LISTS = torch.tensor([[0, 3], [IGNORED, IGNORED], [4, IGNORED], [1, 2]], dtype=torch.int32)
DENSE = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 1, 0, 0]], dtype=torch.float64)


def drawn(dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return (3 * torch.randn(4, 5, generator=random, dtype=torch.float64)).to(dtype).requires_grad_()


def losses_of(spec: Dexml, logits: Tensor, targets: Tensor) -> Tensor:
    return DexmlTerm(spec)(LossInputs(logits, targets, None))


def plain(spec: Dexml, logits: Tensor, targets: Tensor) -> Tensor:
    """One sample after the other."""
    found = []
    for scores, row in zip(logits, targets, strict=True):
        right = row > 0
        weights = row if spec.weighted else right.to(row.dtype)
        if spec.criterion == "bce":
            found.append(F.binary_cross_entropy_with_logits(scores, weights))
        elif spec.criterion == "softmax":
            found.append(-(weights * scores.log_softmax(0)).sum())
        elif spec.criterion == "top-k":
            likely = log_soft_top_k(scores.unsqueeze(0), spec.k, spec.alpha)[0]
            found.append(-(weights * likely).sum() / max(1, int(right.sum())))
        else:
            negatives = scores[~right]
            apart = [
                weight * (torch.cat([score.view(1), negatives]).logsumexp(0) - score)
                for score, weight in zip(scores[right], weights[right], strict=True)
            ]
            found.append(sum(apart, torch.zeros(())) / max(1, len(apart)))
    return torch.stack([each.double() for each in found])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("at_once", [1, 12, 2**20])
def test_every_row_has_its_own_loss_however_many_are_computed_at_a_time(
    monkeypatch: pytest.MonkeyPatch, spec: Dexml, at_once: int
) -> None:
    monkeypatch.setattr(dexml, "LOGITS_AT_ONCE", at_once)
    logits, upstream = drawn(), torch.tensor([0.3, 1.0, 2.0, 0.5], dtype=torch.float64)
    for targets in (DENSE, DENSE * torch.tensor([1.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)):
        found, expected = losses_of(spec, logits, targets), plain(spec, logits, targets)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
        sides = [torch.autograd.grad(each, logits, upstream)[0] for each in (found, expected)]
        torch.testing.assert_close(sides[0], sides[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spec", SPECS)
def test_listed_targets_are_those_of_a_number_for_each_label(spec: Dexml) -> None:
    logits = drawn()
    sides = [losses_of(spec, logits, targets) for targets in (LISTS, DENSE)]
    assert torch.equal(sides[0], sides[1])
    gradients = [torch.autograd.grad(each.sum(), logits)[0] for each in sides]
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("spec", SPECS)
def test_the_gradient_is_that_of_the_value(spec: Dexml) -> None:
    assert torch.autograd.gradcheck(lambda logits: losses_of(spec, logits, DENSE), drawn())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_logits_stay_finite(spec: Dexml, scale: float) -> None:
    logits = (scale * drawn().detach()).float().requires_grad_()
    loss = losses_of(spec, logits, DENSE.float())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = drawn(torch.bfloat16)
    loss = losses_of(SPECS[1], logits, DENSE.float())
    assert loss.dtype == torch.float32
    wide = logits.detach().float().requires_grad_()
    torch.testing.assert_close(loss, losses_of(SPECS[1], wide, DENSE.float()))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("listed", [False, True])
def test_no_more_than_the_gradient_is_as_large_as_the_logits(monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    """Twice in the backward pass, which multiplies it."""
    monkeypatch.setattr(dexml, "LOGITS_AT_ONCE", 2**13)
    logits = torch.randn(64, 2**13).requires_grad_()
    places = torch.randint(0, 2**13, (64, 3), dtype=torch.int32)
    targets = places if listed else torch.zeros(64, 2**13).scatter_(1, places.long(), 1.0)

    def step(loss: Tensor) -> None:
        torch.autograd.grad(loss.sum(), logits)

    size = 4 * logits.numel()
    for spec in SPECS:
        assert peak_bytes(lambda spec=spec: step(losses_of(spec, logits, targets))) < 2.5 * size
    positive = torch.zeros(64, 2**13).scatter_(1, places.long(), 1.0) > 0
    whole = Labelled(positive, torch.ones_like(positive), positive.float())
    assert peak_bytes(lambda: step(label_losses(logits, whole, SPECS[1]))) > 4 * size
