"""Masks, and the losses of patches and of their predictions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.students.architectures import Vit
from app.recipe.students.inputs import ImageInput
from worker.methods.hard_patches import (
    EPSILON,
    absolute_losses,
    choose_mask,
    hard_count,
    masked_count,
    of_patches,
    patch_losses,
    patch_pixels,
    relative_losses,
    standardised,
)
from worker.students.vit import VitNetwork

IMAGES, PATCHES = 400, 12


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("hard", [0, 1, 4, 9])
def test_every_patch_is_masked_or_visible_and_the_hardest_are_masked(hard: int) -> None:
    predicted = drawn(IMAGES, PATCHES)
    visible, masked = choose_mask(predicted, drawn(IMAGES, PATCHES, seed=1), 9, hard)
    assert (visible.shape, masked.shape) == ((IMAGES, 3), (IMAGES, 9))
    both = torch.cat([visible, masked], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(PATCHES).expand(IMAGES, -1))
    for row, hidden in zip(predicted, masked, strict=True):
        assert set(row.argsort(descending=True)[:hard].tolist()) <= set(hidden.tolist())


def test_patches_that_are_not_the_hardest_are_masked_at_random() -> None:
    predicted = torch.arange(PATCHES).double().expand(IMAGES, -1)  # the last ones are the hardest
    masked = choose_mask(predicted, drawn(IMAGES, PATCHES), 9, 4).masked
    shares = torch.nn.functional.one_hot(masked, PATCHES).sum((0, 1)) / IMAGES
    assert torch.equal(shares[-4:], torch.ones(4))
    assert ((shares[:8] - 5 / 8).abs() < 0.1).all()  # four standard deviations


def test_the_hard_share_grows_to_its_end() -> None:
    assert masked_count(196, 0.75) == 147
    counts = [hard_count(147, 0.5, epoch, 200) for epoch in range(200)]
    assert counts == sorted(counts)
    assert (counts[0], counts[99], counts[199]) == (0, 36, 73)
    assert hard_count(147, 0.5, 3, 3.2) == 73  # the last epoch may be shorter
    assert hard_count(147, 0.0, 199, 200) == 0


def test_patches_are_those_that_the_student_numbers() -> None:
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    pixels = patch_pixels(images, 2)
    assert pixels.shape == (2, 6, 12)
    expected = images[1, :, 2:4, 4:6].movedim(0, -1).flatten()  # the last patch of the second row
    assert torch.equal(pixels[1, 5], expected)
    chosen = torch.tensor([[5, 0], [2, 3]])
    assert torch.equal(of_patches(pixels, chosen)[1], pixels[1, [2, 3]])
    assert torch.equal(of_patches(pixels[..., 0], chosen)[0], pixels[0, [5, 0], 0])


def test_a_patch_without_contrast_becomes_0() -> None:
    found = standardised(torch.tensor([[3.0, 3.0, 3.0], [1.0, 2.0, 3.0]], dtype=torch.float64))
    assert torch.equal(found[0], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(found[1], torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), rtol=1e-6, atol=0.0)


def test_losses_of_patches_are_those_of_their_pixels() -> None:
    predicted, pixels = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    plain = patch_losses(predicted, pixels, normalise=False)
    torch.testing.assert_close(plain, ((predicted - pixels) ** 2).mean(-1))
    mean, std = pixels.mean(-1, keepdim=True), (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(
        patch_losses(predicted, pixels, normalise=True), ((predicted - (pixels - mean) / std) ** 2).mean(-1)
    )


def test_the_relative_loss_is_the_mean_over_all_ordered_pairs_with_different_losses() -> None:
    predicted, losses = 4 * drawn(3, 6), drawn(3, 6, seed=1)
    losses[0, 1] = losses[0, 4]  # a tie, which does not count
    terms = []
    for row, true in zip(predicted, losses, strict=True):
        for p in range(6):
            for q in range(6):
                sigmoid = 1 / (1 + (row[q] - row[p]).exp())
                if true[p] > true[q]:
                    terms.append(-(sigmoid + EPSILON).log())
                elif true[p] < true[q]:
                    terms.append(-(1 - sigmoid + EPSILON).log())
    found = relative_losses(predicted, losses, stable=False)
    assert int(found.pairs) == len(terms) // 2 == 3 * 15 - 1
    torch.testing.assert_close(found.loss / found.pairs, torch.stack(terms).mean())
    by_hand = sum(
        bool((row[p] > row[q]) and (true[p] > true[q]))
        for row, true in zip(predicted, losses, strict=True)
        for p in range(6)
        for q in range(6)
    )
    assert int(found.ordered) == by_hand


def test_the_stable_form_keeps_its_gradient_where_the_other_loses_it() -> None:
    losses = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    near = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    one, other = (relative_losses(near, losses, stable=stable).loss for stable in (True, False))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=0.0)
    gradients = []
    for stable in (True, False):
        wrong = torch.tensor([[-20.0, 20.0]], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(relative_losses(wrong, losses, stable=stable).loss, wrong)
        gradients.append(float(gradient[0, 0]))
    assert gradients[0] == pytest.approx(-1.0)
    assert abs(gradients[1]) < 1e-9


def test_ties_alone_give_0_and_no_gradient() -> None:
    predicted = drawn(2, 4).requires_grad_()
    found = relative_losses(predicted, torch.ones(2, 4), stable=False)
    assert int(found.pairs) == 0
    (gradient,) = torch.autograd.grad(found.loss, predicted)
    assert float(found.loss.detach()) == 0.0
    assert not gradient.any()


def test_the_absolute_loss_compares_with_standardised_losses() -> None:
    predicted, losses = drawn(2, 5), drawn(2, 5, seed=1)
    expected = (losses - losses.mean(1, keepdim=True)) / (losses.var(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(absolute_losses(predicted, losses), (predicted - expected) ** 2)


def network() -> VitNetwork:
    torch.manual_seed(0)
    return VitNetwork(Vit(patch_size=2, width=8, depth=2, heads=2), ImageInput(channels=1, height=6, width=6), 3).eval()


def test_the_student_encodes_visible_patches_alone() -> None:
    student, images = network(), torch.randn(2, 1, 6, 6)
    visible = torch.tensor([[0, 4, 7], [8, 2, 1]])
    encoded = student.encode(images, visible)
    assert encoded.shape == (2, 4, 8)
    changed = images.clone()
    changed[0, :, :2, 2:4] += 1.0  # patch 1, which is not visible in the first image
    torch.testing.assert_close(student.encode(changed, visible), encoded)
    changed[0, :, 2:4, 2:4] += 1.0  # patch 4, which is
    assert not torch.allclose(student.encode(changed, visible)[0], encoded[0])


def test_of_a_whole_image_the_student_encodes_what_its_outputs_are_computed_from() -> None:
    student, images = network(), torch.randn(3, 1, 6, 6)
    everything = torch.arange(student.patches).expand(3, -1)
    encoded = student.encode(images, everything)
    torch.testing.assert_close(student.head(encoded[:, 0]), student(images))
    turned = student.encode(images, everything.flip(1))
    torch.testing.assert_close(turned[:, 1:].flip(1), encoded[:, 1:], rtol=1e-4, atol=1e-6)
