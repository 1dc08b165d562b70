"""The analytic costs against the real modules."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from app.recipe.cost import known_costs, student_cost
from app.recipe.students.architectures import (
    ZOO,
    CifarResNet,
    CifarVgg,
    Mlp,
    MobileNetV2,
    Network,
    ShuffleNetV2,
    TextTransformer,
    Transformers,
    Vit,
    WideResNet,
)
from app.recipe.students.inputs import ImageInput
from app.recipe.students.layers import (
    ATTENTIONS,
    IMAGE_NORMS,
    TOKEN_NORMS,
    ActivationSpec,
    GroupNorm,
    LeakyRelu,
    NoNorm,
    NormSpec,
    Relu,
    Silu,
    SoftAttention,
    SoftplusAttention,
)
from app.recipe.students.quantisation import Binary, Qat, ShiftQuant
from app.recipe.tally import Cost
from worker.students import BUILDERS, build

DIGITS, ODD = ImageInput(channels=1, height=8, width=8), ImageInput(channels=3, height=9, width=5)
CLASSES, BATCH = 7, 3
CASES: list[tuple[Network, ImageInput]] = [
    (Mlp(), DIGITS),
    (Mlp(hidden=[]), ODD),
    (Mlp(hidden=[9, 5, 12]), ODD),
    (CifarResNet(depth=8, width=4), DIGITS),
    (CifarResNet(depth=20, width=3), ODD),
    (WideResNet(depth=10), DIGITS),
    (WideResNet(depth=16, widen=2), ODD),
    (CifarVgg(width=2), ImageInput(channels=1, height=16, width=16)),
    (CifarVgg(depth=16, width=3), ODD),
    (MobileNetV2(multiplier=0.25), ImageInput(channels=3, height=16, width=16)),
    (MobileNetV2(multiplier=1.1, expansion=2), ImageInput(channels=2, height=37, width=29)),
    (ShuffleNetV2(size="0.5x"), DIGITS),
    (ShuffleNetV2(size="2x"), ODD),
    (Vit(patch_size=2, width=16, depth=2), DIGITS),
    (Vit(patch_size=1, width=12, depth=1, heads=3, mlp_ratio=1.5), ODD),
]
NORMED: list[Callable[[NormSpec, ActivationSpec], Network]] = [
    lambda norm, activation: CifarResNet(depth=8, width=8, norm=norm, activation=activation),
    lambda norm, activation: WideResNet(depth=10, norm=norm, activation=activation),
    lambda norm, activation: CifarVgg(width=8, norm=norm, activation=activation),
    lambda norm, activation: MobileNetV2(multiplier=0.25, norm=norm, activation=activation),
    lambda norm, activation: ShuffleNetV2(norm=norm, activation=activation),
]
LARGER = ImageInput(channels=2, height=24, width=16)
"""So large that what is kept of a layer outweighs what is kept of a channel."""
CASES += [(make(norm(), Relu()), LARGER) for make in NORMED for norm in IMAGE_NORMS if norm is not GroupNorm]
CASES += [(make(NoNorm(), Silu()), LARGER) for make in NORMED]
CASES += [(make(GroupNorm(groups=2), LeakyRelu()), LARGER) for make in NORMED]
CASES += [
    (Vit(patch_size=2, width=16, depth=2, norm=norm(), attention=attention(), activation=activation()), LARGER)
    for norm, attention, activation in [*product(TOKEN_NORMS, ATTENTIONS, (Relu, Silu))]
]
SOFTS = (SoftAttention(normalised=True, conv_size=0), SoftAttention(ratio=4), SoftplusAttention(power=None))
CASES += [(Vit(patch_size=2, width=16, depth=2, attention=attention), LARGER) for attention in SOFTS]
CASES += [(Vit(patch_size=2, width=4, depth=2, heads=1, attention=attention()), LARGER) for attention in ATTENTIONS]
each = pytest.mark.parametrize(("student", "image"), CASES)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def cost_of(network: Network, image: ImageInput, outputs: int = CLASSES) -> Cost:
    cost = student_cost(network, image, outputs)
    assert cost is not None
    return cost


def images_of(image: ImageInput) -> Tensor:
    return torch.randn(BATCH, image.channels, image.height, image.width)


def kept_elements(network: nn.Module, image: ImageInput) -> float:
    """Elements per sample that autograd really keeps for the backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if tensor.is_floating_point() and storage not in weights:
            kept[storage] = tensor
        return tensor

    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = nn.functional.cross_entropy(network(images_of(image)), torch.zeros(BATCH, dtype=torch.int64))
    total = sum(tensor.untyped_storage().nbytes() // 4 for tensor in kept.values())
    del loss
    return total / BATCH


@each
def test_parameters_are_those_of_the_module(student: Network, image: ImageInput) -> None:
    network = build(student, image, CLASSES)
    assert cost_of(student, image).parameters == sum(p.numel() for p in network.parameters())


@each
def test_operations_are_those_that_torch_counts(student: Network, image: ImageInput) -> None:
    network = build(student, image, CLASSES)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(images_of(image))
    assert cost_of(student, image).flops * BATCH == counter.get_total_flops()


@each
def test_activations_are_near_what_autograd_keeps(student: Network, image: ImageInput) -> None:
    kept = kept_elements(build(student, image, CLASSES), image)
    assert cost_of(student, image).activations == pytest.approx(kept, rel=0.15)


def test_every_student_of_the_contract_is_counted_and_built() -> None:
    assert {type(student) for student, _ in CASES} == set(BUILDERS) == set(ZOO) - {TextTransformer}


def test_the_cost_of_a_library_network_is_unknown_before_building_it() -> None:
    network = Transformers(config={"model_type": "resnet"})
    assert student_cost(network, DIGITS, CLASSES) is None
    known = student_cost(Mlp(), DIGITS, CLASSES)
    assert known_costs([known, None]) is None
    assert known_costs([known, known]) == [known, known]


def test_costs_grow_with_width() -> None:
    small, large = (cost_of(WideResNet(widen=widen), DIGITS, 10) for widen in (1, 2))
    assert isinstance(small, Cost)
    assert small.parameters < large.parameters
    assert small.flops < large.flops
    assert small.peak_activation < large.peak_activation


QUANTISED: list[Network] = [
    Mlp(hidden=[9, 5], quantise=Qat()),
    Mlp(hidden=[9, 5], quantise=ShiftQuant()),
    Mlp(hidden=[9, 5, 6], quantise=Binary()),
    CifarResNet(depth=8, width=8, quantise=Qat()),
    MobileNetV2(multiplier=0.25, quantise=Qat()),
    Vit(patch_size=2, width=16, depth=2, quantise=Qat()),
]


@pytest.mark.parametrize("student", QUANTISED, ids=lambda student: f"{student.architecture}-{student.quantise.kind}")
def test_a_quantised_network_keeps_at_most_its_bound(student: Network) -> None:
    network, cost = build(student, LARGER, CLASSES), cost_of(student, LARGER)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    rounded_weights = cost.parameters / BATCH  # one copy for a whole batch
    assert kept_elements(network, LARGER) - rounded_weights < 1.15 * cost.activations
