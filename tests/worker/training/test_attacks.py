"""Attacks on images: what they are, where they begin, and what they leave alone."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.attacks import AttackSpec
from app.recipe.students.architectures import CifarResNet, Mlp, Student
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.students.model import Model
from worker.training.attacks import cross_entropy_with, fgsm, pgd, start_noise

CLASSES, SIDE, IMAGES = 3, 6, 12
CPU = torch.device("cpu")


def model(student: Student | None = None, scale: float = 1 / 255) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=student or Mlp(hidden=[16]),
        input=ImageInput(channels=1, height=SIDE, width=SIDE),
        preprocessing=Preprocessing(scale=scale, mean=[0.5], std=[0.25]),
        classes=CLASSES,
    )
    return Model(config).eval()


def samples(dtype: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(256, (IMAGES, 1, SIDE, SIDE), generator=random)
    labels = torch.randint(CLASSES, (IMAGES,), generator=random)
    return (images.to(dtype) if dtype == torch.uint8 else images / 255), labels


def losses(network: Model, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(network(images), labels, reduction="none")


def test_pgd_is_that_of_the_paper_in_raw_pixels() -> None:
    network, (images, labels) = model(), samples()
    attack = AttackSpec(bound=0.1, step_size=0.03, steps=5)
    noise = start_noise(attack, images.shape, 255.0, 7, CPU)
    assert noise is not None
    x = images.double() / 255
    moved = x + noise / 255
    for _ in range(5):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(moved * 255), labels), moved)
        moved = (moved.detach() + 0.03 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    found = pgd(network, images, cross_entropy_with(labels), attack, 255.0, noise)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double() / 255, moved, rtol=0, atol=1e-6)
    assert (losses(network, found, labels) > losses(network, images, labels)).all()


def test_fgsm_moves_every_pixel_by_the_bound_within_the_range() -> None:
    network, (images, labels) = model(), samples()
    found = fgsm(network, images, cross_entropy_with(labels), 0.1, 255.0)
    least, largest = (images - 25.5).clamp(min=0), (images + 25.5).clamp(max=255)
    assert (torch.isclose(found, least) | torch.isclose(found, largest)).all()
    assert losses(network, found, labels).mean() > losses(network, images, labels).mean()


def test_images_from_0_to_1_are_attacked_as_those_of_bytes() -> None:
    attack = AttackSpec(random_start="uniform")
    (bytes_, labels), (shares, _) = samples(), samples(torch.float32)
    found = {}
    for name, network, images in (("bytes", model(), bytes_), ("shares", model(scale=1.0), shares)):
        highest = network.highest_pixel
        noise = start_noise(attack, images.shape, highest, 3, CPU)
        found[name] = pgd(network, images, cross_entropy_with(labels), attack, highest, noise) / highest
    torch.testing.assert_close(found["bytes"], found["shares"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", ["normal", "uniform", "none"])
def test_starts_are_the_seeds_and_of_their_size(start: Literal["normal", "uniform", "none"]) -> None:
    attack = AttackSpec(bound=0.1, random_start=start)
    shape = torch.Size([64, 3, 8, 8])
    first, again, other = (start_noise(attack, shape, 255.0, seed, CPU) for seed in (1, 1, 2))
    if start == "none":
        assert first is None
        return
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    deviation = 0.255 if start == "normal" else 25.5 / 3**0.5
    assert float(first.std()) == pytest.approx(deviation, rel=0.05)
    assert start == "normal" or float(first.abs().max()) <= 25.5


def test_an_attack_leaves_the_model_alone_and_does_not_look_at_the_rest_of_a_batch() -> None:
    network, (images, labels) = model(CifarResNet(depth=8, width=4)), samples()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    whole = pgd(network, images, cross_entropy_with(labels), AttackSpec(steps=3), 255.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    parts = [
        pgd(network, images[rows], cross_entropy_with(labels[rows]), AttackSpec(steps=3), 255.0)
        for rows in (slice(5), slice(5, 12))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-4)


def test_labels_may_be_probabilities() -> None:
    network, (images, labels) = model(), samples()
    certain = F.one_hot(labels, CLASSES).double()
    hard, soft = (fgsm(network, images, cross_entropy_with(targets), 0.1, 255.0) for targets in (labels, certain))
    assert torch.equal(hard, soft)


@pytest.mark.parametrize(
    ("values", "highest", "expected"),
    [
        (torch.tensor([0, 255], dtype=torch.uint8), 255.0, True),
        (torch.tensor([0, 2], dtype=torch.uint8), 1.0, False),
        (torch.tensor([0.0, 1.0]), 1.0, True),
        (torch.tensor([-0.1, 1.0]), 1.0, False),
        (torch.tensor([0.0, 255.0]), 1.0, False),
    ],
)
def test_pixels_have_a_range(values: Tensor, highest: float, expected: Any) -> None:
    assert model(scale=1 / highest).in_pixel_range(values) is expected
