"""Hard patches mining: the losses of patches and of their predictions, and which patches are masked."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.methods.hard_patches import (
    absolute_losses,
    choose_mask,
    hard_count,
    masked_count,
    of_patches,
    patch_losses,
    patch_pixels,
    relative_losses,
)


def hpm(case: Case) -> Iterator[Comparison]:
    """All cases."""
    if "relative" in case.hyper:
        yield from _prediction(case)
    elif "imgs" in case.inputs:
        yield from _reconstruction(case)
    else:
        yield from _mask(case)


def _prediction(case: Case) -> Iterator[Comparison]:
    predicted, losses = case.inputs["loss_pred"].clone().requires_grad_(), case.inputs["loss_target"]
    relative = relative_losses(predicted, losses, stable=False)
    loss = (
        relative.loss / relative.pairs.clamp(min=1)
        if case.hyper["relative"]
        else absolute_losses(predicted, losses).mean()
    )
    yield from _compared(case, loss, predicted, "grad_pred")


def _reconstruction(case: Case) -> Iterator[Comparison]:
    masked = case.inputs["mask"].nonzero()[:, 1].view(len(case.inputs["mask"]), -1)
    pixels = of_patches(patch_pixels(case.inputs["imgs"], case.hyper["patch"]), masked)
    predicted = case.inputs["pred"].clone().requires_grad_()
    losses = patch_losses(predicted, pixels, normalise=case.hyper["norm_pix_loss"])
    yield Comparison("hpm", "matrix", losses.detach(), case.outputs["matrix"])
    yield from _compared(case, losses.mean(), predicted, "grad_pred")


def _compared(case: Case, loss: Tensor, predicted: Tensor, gradient: str) -> Iterator[Comparison]:
    (found,) = torch.autograd.grad(loss, predicted)
    yield Comparison("hpm", "loss", loss.detach(), case.outputs["loss"])
    yield Comparison("hpm", gradient, found, case.outputs[gradient], is_gradient=True)


def _mask(case: Case) -> Iterator[Comparison]:
    """Counts; the hardest patches alone; and, with others that are drawn, which of the hardest are masked."""
    predicted, settings = case.inputs["loss_pred"], case.hyper
    noise = torch.rand(predicted.shape, generator=torch.Generator().manual_seed(0))
    masked = masked_count(predicted.shape[1], settings["mask_ratio"])
    hard = hard_count(masked, settings["final_hard_fraction"], settings["epoch"], settings["total_epoch"])
    mask = choose_mask(predicted, noise, masked, hard).masked
    yield Comparison("hpm", "n_masked", torch.tensor(mask.shape[1]), case.outputs["n_masked"])
    yield Comparison("hpm", "n_hard", torch.tensor(hard), case.outputs["n_hard"])
    expected = case.outputs["hard_idx_sorted"]
    if hard:
        alone = choose_mask(predicted, noise, hard, hard).masked.sort(dim=1).values
        yield Comparison("hpm", "hard_idx_sorted", alone, expected)
        among = (expected.unsqueeze(2) == mask.unsqueeze(1)).any(2)
        yield Comparison("hpm", "hard_idx_sorted, masked", among.double(), torch.ones(expected.shape).double())
