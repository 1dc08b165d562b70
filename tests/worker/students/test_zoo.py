"""Every architecture, on every kind of image that the contract admits."""

from __future__ import annotations

import pytest
import torch

from app.recipe.students.architectures import (
    CifarResNet,
    CifarVgg,
    Mlp,
    MobileNetV2,
    ShuffleNetV2,
    Student,
    Vit,
    WideResNet,
)
from app.recipe.students.layers import (
    ACTIVATIONS,
    ATTENTIONS,
    NORMS,
    BatchNorm,
    CrmsNorm,
    Gelu,
    GroupNorm,
    L1BatchNorm,
    L1LayerNorm,
    LayerNorm,
    LeakyRelu,
    LinearAttention,
    NalaAttention,
    NoNorm,
    OptimalHermite,
    PowerNorm,
    Relu,
    RmsNorm,
    Selu,
    SigmoidAttention,
    Silu,
    SoftAttention,
    SoftplusAttention,
    UnifiedNorm,
)
from app.recipe.students.model import ImageInput
from worker.students import build
from worker.students.cifar_resnet import BasicBlock
from worker.students.layers.convolutions import ImageLayers

STUDENTS: list[Student] = [
    Mlp(hidden=[8]),
    CifarResNet(depth=8, width=4),
    WideResNet(depth=10),
    CifarVgg(depth=11, width=3),
    MobileNetV2(multiplier=0.2),
    ShuffleNetV2(size="0.5x"),
    Vit(patch_size=1, width=8, depth=2, heads=2),
]
LAYERED: dict[str, Mlp | CifarResNet | WideResNet | CifarVgg | MobileNetV2 | ShuffleNetV2 | Vit] = {
    "no norms": CifarResNet(depth=8, width=4, norm=NoNorm(), activation=Gelu()),
    "rms of images": CifarResNet(depth=8, width=4, norm=RmsNorm()),
    "groups": WideResNet(depth=10, norm=GroupNorm(groups=4), activation=LeakyRelu(slope=0.1)),
    "layer norm of images": CifarVgg(depth=8, width=3, norm=LayerNorm(), activation=Silu()),
    "groups of a mobile network": MobileNetV2(multiplier=0.25, norm=GroupNorm(groups=2), activation=Silu()),
    "layer norm of shuffled channels": ShuffleNetV2(size="0.5x", norm=LayerNorm(), activation=LeakyRelu()),
    "rms": Vit(patch_size=1, width=8, depth=2, heads=2, norm=RmsNorm(), activation=Relu()),
    "compressed rms": Vit(patch_size=1, width=8, depth=2, heads=2, norm=CrmsNorm()),
    "power": Vit(patch_size=1, width=8, depth=2, heads=2, norm=PowerNorm(groups=2, warmup_steps=4)),
    "unified": Vit(patch_size=1, width=8, depth=2, heads=2, norm=UnifiedNorm(warmup_steps=5, clamp_after=5)),
    "unified of images": CifarResNet(depth=8, width=4, norm=UnifiedNorm(warmup_steps=5, clamp_after=5)),
    "l1 of tokens": Vit(patch_size=1, width=8, depth=2, heads=2, norm=L1LayerNorm()),
    "l1 of images": WideResNet(depth=10, norm=L1LayerNorm()),
    "l1 of batches": CifarResNet(depth=8, width=4, norm=L1BatchNorm()),
    "selu": Mlp(hidden=[16, 16, 16], activation=Selu(alpha_dropout=0.05)),
    "cubic": Mlp(hidden=[32], activation=OptimalHermite(dimension=3)),
    "linear attention": Vit(patch_size=1, width=8, depth=2, heads=2, attention=LinearAttention(), activation=Silu()),
    "sigmoid attention": Vit(patch_size=1, width=8, depth=2, heads=2, attention=SigmoidAttention()),
    "softplus attention": Vit(patch_size=1, width=8, depth=2, heads=2, attention=SoftplusAttention(power=1.0)),
    "soft attention": Vit(patch_size=1, width=8, depth=2, heads=2, attention=SoftAttention(ratio=1)),
    "normalised soft attention": Vit(
        patch_size=1, width=8, depth=2, heads=2, attention=SoftAttention(ratio=1, normalised=True, conv_size=0)
    ),
    "nala attention": Vit(patch_size=1, width=8, depth=2, heads=2, attention=NalaAttention()),
}
"""Every kind of layer but those that networks have by default."""
IMAGES = [
    ImageInput(channels=1, height=8, width=8),
    ImageInput(channels=3, height=5, width=7),
    ImageInput(channels=2, height=1, width=1),
]
LAYERS = ImageLayers(BatchNorm(), Relu())
each_student = pytest.mark.parametrize("student", STUDENTS, ids=lambda student: student.architecture)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@each_student
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_training_step_gives_finite_gradients_to_all_weights(student: Student, image: ImageInput, batch: int) -> None:
    network = build(student, image, 5)
    logits = network(torch.randn(batch, image.channels, image.height, image.width))
    assert logits.shape == (batch, 5)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_networks_of_other_layers_learn(name: str, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    network = build(LAYERED[name], IMAGES[1], 3)
    samples, labels = torch.randn(12, 3, 5, 7), torch.arange(12) % 3
    optimizer, losses = torch.optim.AdamW(network.parameters(), 3e-3), []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = network(samples)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        for parameter_name, parameter in network.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


ALONE = [
    name
    for name, student in LAYERED.items()
    if not isinstance(student, CifarVgg | Mlp) and not isinstance(student.norm, PowerNorm | UnifiedNorm | L1BatchNorm)
]
"""Networks whose norms are of single samples."""


@pytest.mark.parametrize("name", ALONE)
def test_without_batch_norm_a_sample_does_not_depend_on_its_batch_in_training_either(name: str) -> None:
    network = build(LAYERED[name], IMAGES[0], 5).train()
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(network(images)[:1], network(images[:1]), rtol=1e-4, atol=1e-5)


def test_every_kind_of_layer_is_in_a_network_that_is_tried() -> None:
    students = [*STUDENTS, *LAYERED.values()]
    tried = {type(getattr(one, field, None)) for one in students for field in ("norm", "activation", "attention")}
    assert {*NORMS, *ACTIVATIONS, *ATTENTIONS} <= tried


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
    block = BasicBlock(LAYERS, 2, 5, stride=2)
    for norm in (block.norm1, block.norm2):
        torch.nn.init.zeros_(norm.weight)  # leaves the shortcut alone
    images = torch.rand(1, 2, 5, 4)
    out = block(images)
    assert torch.equal(out[:, :2], images[:, :, ::2, ::2])
    assert not out[:, 2:].any()


def test_a_shortcut_can_be_padded_on_both_sides() -> None:
    block = BasicBlock(LAYERS, 2, 5, stride=2, padding="both")
    for norm in (block.norm1, block.norm2):
        torch.nn.init.zeros_(norm.weight)
    images = torch.rand(1, 2, 5, 4)
    out = block(images)
    assert torch.equal(out[:, 1:3], images[:, :, ::2, ::2])
    assert not out[:, [0, 3, 4]].any()


@pytest.mark.parametrize(
    ("student", "path"),
    [
        (CifarResNet(depth=8, width=2), "stages.1.0.relu2"),
        (WideResNet(depth=10), "stages.2.0.relu1"),
        (CifarVgg(width=2), "stages.1.2"),
        (MobileNetV2(multiplier=0.2), "last.2"),
        (ShuffleNetV2(size="0.5x"), "stages.0.0.branch.7"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.architecture,
)
def test_what_enters_a_relu_can_be_read_by_its_path(student: Student, path: str) -> None:
    network = build(student, IMAGES[0], 5)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    relu = network.get_submodule(path)
    relu.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    network(torch.randn(2, 1, 8, 8))
    ((before, after),) = seen
    assert bool((before < 0).any())
    assert torch.equal(after, before.clamp(min=0))


def test_names_of_stored_weights_are_kept() -> None:
    names = set(build(CifarResNet(depth=8, width=2), IMAGES[0], 5).state_dict())
    assert {"conv.weight", "norm.running_mean", "stages.2.0.conv1.weight", "stages.2.0.norm2.bias", "head.bias"} < names
    assert {"stages.0.0.shortcut.weight", "norm.weight"} < set(build(WideResNet(widen=2), IMAGES[0], 5).state_dict())


@pytest.mark.parametrize(
    ("student", "published", "ours"),
    [
        (MobileNetV2(multiplier=1.0), 3_504_872, 32 * 32 + 2 * 32),  # the first block's 1x1 that widens by 1
        (ShuffleNetV2(size="1x"), 2_278_604, 24 * 3 * (1 - 9)),  # a stem of 1x1
    ],
    ids=lambda value: getattr(value, "architecture", None),
)
def test_weights_with_a_thousand_classes_are_the_published_ones_and_the_stem_s(
    student: Student, published: int, ours: int
) -> None:
    network = build(student, ImageInput(channels=3, height=32, width=32), 1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == published + ours


def test_a_deep_self_normalising_network_keeps_mean_and_variance_and_a_relu_does_not_keep_the_mean() -> None:
    torch.manual_seed(0)
    image, samples = ImageInput(channels=1, height=16, width=16), torch.randn(256, 1, 16, 16)
    moments = {}
    for activation in (Selu(), Relu()):
        network = build(Mlp(hidden=[256] * 16, activation=activation), image, 5).eval()
        assert isinstance(network, torch.nn.Sequential)
        values = network[:-1](samples).detach()
        moments[activation.kind] = (float(values.mean()), float(values.var()))
    assert moments["selu"] == pytest.approx((0.0, 1.0), abs=0.2)
    assert moments["relu"][0] > 0.3


def test_a_network_with_the_cubic_does_not_depend_on_the_length_of_its_inputs() -> None:
    network = build(Mlp(hidden=[16], activation=OptimalHermite()), IMAGES[0], 5)
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(network(7 * images), network(images), rtol=1e-4, atol=1e-5)
    assert network(torch.zeros(1, 1, 8, 8)).isfinite().all()
