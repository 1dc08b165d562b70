"""The network that reconstructs the features of its encoder: what it computes, and which layers it takes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.cost import student_cost
from app.recipe.students.architectures import CifarResNet, InpFormerNetwork, Network, Transformers, Vit, WideResNet
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.errors import UserError
from worker.students import build
from worker.students.inp_former import InpFormerModule, _token_grid
from worker.students.measure import network_cost
from worker.students.model import Model

IMAGE = ImageInput(channels=1, height=8, width=12)
VIT = Vit(patch_size=4, width=6, depth=3, heads=2)
BLOCKS = [["blocks.0", "blocks.1"], ["blocks.2"]]


def described(encoder: Network = VIT, layers: list[list[str]] = BLOCKS, **settings: Any) -> InpFormerNetwork:
    given = {"prototypes": 2, "heads": 2, "map_size": 20, **settings}
    return InpFormerNetwork(encoder=encoder, encoder_outputs=3, layers=layers, **given)


def config(network: InpFormerNetwork, image: ImageInput = IMAGE) -> ModelConfig:
    scaling = Preprocessing(mean=[0.5] * image.channels, std=[0.5] * image.channels)
    return ModelConfig(
        task="anomaly-detection", architecture=network, input=image, preprocessing=scaling, targets=network.outputs
    )


def built(network: InpFormerNetwork, image: ImageInput = IMAGE) -> InpFormerModule:
    torch.manual_seed(0)
    made = build(network, image, network.outputs)
    assert isinstance(made, InpFormerModule)
    for name, parameter in made.named_parameters():
        if not name.startswith("encoder."):
            nn.init.normal_(parameter, std=0.3)
    return made.eval()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 1, 8, 12, generator=torch.Generator().manual_seed(1))


def attention(block: Any, queries: Tensor, others: Tensor, *, prototypes: bool) -> Tensor:
    """Attention of a block, head by head and written out, behind its norm."""
    queries, others = block.norm1(queries), block.norm1(others)
    part, width = block.attention, queries.shape[-1]
    size = width // part.heads
    query, both = part.query(queries), part.key_value(others)
    found = []
    for head in range(part.heads):
        q, k, v = (each[..., head * size : (head + 1) * size] for each in (query, both[..., :width], both[..., width:]))
        if prototypes:
            cosines = F.cosine_similarity(q.unsqueeze(-2), k.unsqueeze(-3), dim=-1)
            weights = (cosines * part.scale[head]).clamp(min=0.0)
        else:
            weights = torch.softmax(torch.einsum("bqd,bkd->bqk", q, k) / size**0.5, -1)
        found.append(weights @ v)
    return part.out(torch.cat(found, -1))  # type: ignore[no-any-return]


def test_it_computes_what_the_paper_describes() -> None:
    network = built(described())
    features: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *a: features.append(a[2])) for block in network.encoder.blocks]  # type: ignore[union-attr,operator]
    found = network(images())
    for hook in hooks:
        hook.remove()
    layers = [feature[:, 1:] for feature in features]  # without the class token
    tokens = sum(layers) / 3
    queries = network.queries.weight.expand(3, -1, -1)
    extractor: Any = network.extractor
    x = queries + attention(extractor, queries, tokens, prototypes=False)
    prototypes = x + extractor.feed_forward(extractor.norm2(x))
    x, decoded = network.bottleneck(tokens), []
    for block in network.decoder:
        x = attention(block, x, prototypes, prototypes=True)
        x = x + block.feed_forward(block.norm2(x))  # type: ignore[operator,union-attr]
        decoded.append(x)
    third, second, first = decoded
    pairs = [((layers[0] + layers[1]) / 2, (first + second) / 2), (layers[2], third)]
    distances = sum(1 - F.cosine_similarity(theirs, ours, dim=-1) for theirs, ours in pairs) / 2
    maps = F.interpolate(distances.reshape(3, 1, 2, 3), (20, 20), mode="bilinear", align_corners=False)  # type: ignore[union-attr]
    torch.testing.assert_close(found[:, 1:], maps.flatten(1))
    highest = maps.flatten(1).sort(descending=True).values[:, :4].mean(1)  # 1 % of 400
    torch.testing.assert_close(found[:, 0], highest)


def test_an_exact_reconstruction_scores_nothing_and_an_opposite_one_2() -> None:
    network = built(described())
    features = torch.rand(2, 3, 6, 6)
    for sign, score in ((1.0, 0.0), (-1.0, 2.0)):
        sides = network._grouped(features), network._grouped(sign * 3.0 * features)
        outputs = network._with_score((1.0 - F.cosine_similarity(*sides, dim=-1)).mean(1))
        torch.testing.assert_close(outputs, torch.full((2, 401), score), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "layers", "grid"),
    [
        (VIT, BLOCKS, (2, 3, 1, 6)),
        (CifarResNet(depth=8, width=4), [["stages.1.0"]], (4, 6, 0, 8)),
        (WideResNet(depth=10), [["stages.2"], ["stages.2.0"]], (2, 3, 0, 64)),
        (
            Transformers(
                config={
                    **{"model_type": "vit", "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 2},
                    **{"num_attention_heads": 2, "intermediate_size": 8},
                }
            ),
            [["vit.layers.0", "vit.layers.1"]],
            (2, 3, 1, 8),
        ),
    ],
    ids=lambda value: getattr(value, "architecture", None),
)
def test_tokens_and_maps_of_every_kind_of_encoder_are_read(
    encoder: Network, layers: list[list[str]], grid: tuple[int, ...]
) -> None:
    network = built(described(encoder, layers))
    assert network.grid == grid
    assert network(images()).shape == (3, 401)


def test_the_map_lies_as_the_image_does() -> None:
    network = built(described(WideResNet(depth=10), [["stages.2"]]))
    marked = torch.zeros(1, 64, 2, 3)
    marked[0, :, 0, 2] = 1.0  # above, on the right
    distances = network._positions(marked).mean(-1)
    row, column = divmod(int(network._with_score(distances)[0, 1:].argmax()), 20)
    assert row < 10
    assert column > 13


def test_the_encoder_stays_as_it_is() -> None:
    network = built(described(CifarResNet(depth=8, width=4), [["stages.1.0"]])).train()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    assert not network.encoder.training
    assert network.decoder.training
    optimizer = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], 0.1, weight_decay=0.5)
    network(images()).sum().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())
    learning = {name: each for name, each in network.named_parameters() if not name.startswith("encoder.")}
    assert [name for name, each in learning.items() if each.grad is None] == []


def test_a_copy_has_activations_of_its_own() -> None:
    network = built(described())
    copy = deepcopy(network)
    with torch.no_grad():
        copy.encoder.blocks[0].norm1.weight.zero_()  # type: ignore[index,union-attr,operator]
    before = network(images())
    changed = copy(images())
    assert not torch.equal(before, changed)
    assert torch.equal(network(images()), before)


@pytest.mark.parametrize("further", [0, 1, 5])
def test_tokens_of_parts_are_the_last_ones(further: int) -> None:
    grid = _token_grid(torch.Size((further + 6, 7)), IMAGE)
    assert grid == (2, 3, further, 7)


@pytest.mark.parametrize("shape", [(5,), (50, 7), (2, 3, 4, 5)])
def test_other_tokens_are_none(shape: tuple[int, ...]) -> None:
    assert _token_grid(torch.Size(shape), IMAGE) is None


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"layers": [["blocks.7"]]}, "layers", "blocks.7"),
        ({"layers": [["blocks.0", "blocks.1.norm1"], ["head"]]}, "layers", "different shapes"),
        ({"layers": [["head"]]}, "layers", "no maps, and no tokens"),
        ({"heads": 4}, "heads", "4 does not divide the width 6"),
        ({"map_size": 2}, "map_size", "is 2, and the features have 2 x 3 positions"),
    ],
)
def test_layers_that_do_not_fit_are_refused_by_their_field(changes: dict[str, Any], field: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        built(described(**changes))
    assert refused.value.param == f"student.{field}"


@pytest.mark.parametrize(
    ("encoder", "layers"),
    [
        (VIT, BLOCKS),
        (CifarResNet(depth=8, width=4), [["stages.1.0"]]),
        (WideResNet(depth=10), [["stages.0"]]),
        (WideResNet(depth=16), [["stages.2.0", "stages.2.1"]]),
    ],
    ids=lambda value: getattr(value, "architecture", None),
)
def test_costs_are_counted_from_the_description(encoder: Network, layers: list[list[str]]) -> None:
    network = described(encoder, layers, prototypes=3, mlp_ratio=1.5)
    counted, measured = student_cost(network, IMAGE, network.outputs), network_cost(config(network))
    assert counted is not None
    for name in ("parameters", "flops", "hidden_weights", "frozen_parameters", "frozen_flops"):
        assert getattr(counted, name) == getattr(measured, name), name
    assert 0.4 < counted.activations / measured.activations < 2.5
    assert counted.frozen_parameters == sum(each.numel() for each in built(network).encoder.parameters())
    assert counted.training_flops(3) == 3 * counted.flops - 2 * counted.frozen_flops


def test_half_precision_gives_outputs_in_full_and_near() -> None:
    model = Model(config(described())).eval()
    with torch.no_grad():
        exact = model(images())
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model(images())
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, exact, rtol=0.0, atol=0.05)
