"""Every architecture, on every kind of image that the contract admits."""

from __future__ import annotations

import pytest
import torch

from app.recipe.model import ImageInput
from app.recipe.students import CifarResNet, Mlp, Student, Vit, WideResNet
from worker.students import build
from worker.students.cifar_resnet import BasicBlock
from worker.students.layers import BatchNorm2d

STUDENTS: list[Student] = [
    Mlp(hidden=[8]),
    CifarResNet(depth=8, width=4),
    WideResNet(depth=10),
    Vit(patch_size=1, width=8, depth=2, heads=2),
]
IMAGES = [
    ImageInput(channels=1, height=8, width=8),
    ImageInput(channels=3, height=5, width=7),
    ImageInput(channels=2, height=1, width=1),
]
each_student = pytest.mark.parametrize("student", STUDENTS, ids=lambda student: student.architecture)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@each_student
@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_training_step_gives_finite_gradients_to_all_weights(student: Student, image: ImageInput, batch: int) -> None:
    network = build(student, image, 5)
    logits = network(torch.randn(batch, image.channels, image.height, image.width))
    assert logits.shape == (batch, 5)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@each_student
def test_weights_depend_on_the_seed_alone(student: Student) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(build(student, IMAGES[0], 5).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@each_student
def test_in_evaluation_a_sample_does_not_depend_on_its_batch(student: Student) -> None:
    network = build(student, IMAGES[0], 5).eval()
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(network(images)[:1], network(images[:1]), rtol=1e-4, atol=1e-5)


@each_student
def test_fresh_logits_are_of_moderate_size(student: Student) -> None:
    torch.manual_seed(0)
    assert build(student, IMAGES[0], 5).eval()(torch.randn(64, 1, 8, 8)).std() < 10


def test_an_option_a_shortcut_is_strided_and_padded_with_zero_channels() -> None:
    block = BasicBlock(2, 5, stride=2)
    for norm in (block.norm1, block.norm2):
        torch.nn.init.zeros_(norm.weight)  # leaves the shortcut alone
    images = torch.rand(1, 2, 5, 4)
    out = block(images)
    assert torch.equal(out[:, :2], images[:, :, ::2, ::2])
    assert not out[:, 2:].any()


def test_batch_norm_of_one_value_uses_and_keeps_the_running_statistics() -> None:
    norm = BatchNorm2d(2).train()
    assert norm.running_mean is not None
    norm.running_mean.fill_(3.0)
    out = norm(torch.full((1, 2, 1, 1), 4.0))
    torch.testing.assert_close(out, torch.full((1, 2, 1, 1), 1.0), rtol=1e-4, atol=1e-4)
    assert norm.running_mean.tolist() == [3.0, 3.0]
    norm(torch.randn(2, 2, 1, 1))
    assert norm.running_mean.tolist() != [3.0, 3.0]


def test_batch_norm_is_torchs_own_otherwise() -> None:
    ours, theirs = BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    images = torch.randn(4, 3, 2, 2)
    assert torch.equal(ours(images), theirs(images))
    assert torch.equal(ours.eval()(images), theirs.eval()(images))
