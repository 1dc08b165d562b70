"""Adapters: which one is made, its initial weights, sharing between losses, and refused settings."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from app.recipe.losses import LossSpec
from app.recipe.losses.features import (
    ActivationBoundary,
    AttentionPair,
    AttentionRelation,
    FeatureAutoencoder,
    Hint,
    InheritanceExploration,
    Lipschitz,
    MarginPair,
    MiAlpha,
    Overhaul,
    Rkd,
)
from app.recipe.losses.taps import Pair, Tap
from tests.worker.losses.features.samples import SEPARATE, build, builder, fused, margin_pair, pair
from worker.errors import UserError
from worker.losses import build_term
from worker.losses.builder import LossBuilder, TeacherSide
from worker.losses.features.activations import same_size, vectors
from worker.losses.features.adapters import Adapter, RowNorm


@pytest.mark.parametrize(
    ("places", "adapter", "layer"),
    [
        (pair("vector"), "auto", nn.Linear),
        (pair("tokens"), "linear", nn.Linear),
        (pair("map"), "auto", nn.Conv2d),
        (pair("map", "same.map"), "conv1x1", nn.Conv2d),
        (pair("map", "same.map"), "auto", None),
        (pair("vector", "same.vector"), "none", None),
    ],
)
def test_an_adapter_fits_its_features(places: Pair, adapter: str, layer: type | None) -> None:
    document = {"kind": "hint", "pairs": [places.model_dump()], "adapter": adapter}
    parts = list(build(Hint.model_validate(document)).parts.values())
    assert [type(part.map) for part in parts if isinstance(part, Adapter)] == ([layer] if layer else [])
    assert len(parts) == (layer is not None)


def test_a_connector_begins_as_the_authors() -> None:
    torch.manual_seed(0)
    connector = Adapter(4, 64, 128, connector=True)
    assert connector.map.bias is None
    assert connector.map.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert connector.norm is not None
    assert (connector.norm.weight == 1.0).all()
    assert (connector.norm.bias == 0.0).all()


@pytest.mark.parametrize(("shape", "torchs"), [((6, 3), nn.BatchNorm1d), ((6, 3, 2, 5), nn.BatchNorm2d)])
def test_batch_norm_over_all_rows_is_torchs(shape: tuple[int, ...], torchs: type[nn.Module]) -> None:
    ours, theirs = RowNorm(3).double(), torchs(3).double()
    for _ in range(3):
        feature = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(ours(feature), theirs(feature))
    torch.testing.assert_close(ours.eval()(feature), theirs.eval()(feature))


def test_batch_norm_of_tokens_is_over_rows_and_tokens() -> None:
    feature = torch.randn(4, 5, 3)
    normal = RowNorm(3)(feature).flatten(0, 1)
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(normal.var(0, unbiased=False), torch.ones(3), rtol=0, atol=1e-4)


def test_running_statistics_use_only_valid_rows() -> None:
    feature, valid = torch.randn(4, 3), torch.tensor([True, True, True, False])
    ours, few = RowNorm(3), RowNorm(3)
    ours(feature, valid)
    few(feature[:3])
    torch.testing.assert_close(ours.state_dict(), few.state_dict())
    ours(feature, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(ours.state_dict(), few.state_dict())


def test_terms_of_one_name_share_connectors_of_the_same_pairs() -> None:
    shop = builder()
    build_term(Overhaul(pairs=[margin_pair("map"), margin_pair("late")]), shop)
    made = set(shop.aux_modules)
    build_term(Lipschitz(pairs=[pair("map"), pair("late")]), shop)
    assert set(shop.aux_modules) == made
    build_term(Lipschitz(pairs=[pair("map"), pair("late")], name="own"), shop)
    assert len(shop.aux_modules) == 2 * len(made)


def test_terms_of_several_teachers_have_adapters_of_their_own() -> None:
    shapes = {Tap(path="vector"): torch.Size((2, 3))}
    sides = {
        name: TeacherSide(nn.Module(), {Tap(path="vector"): torch.Size((2, width))})
        for name, width in (("a", 4), ("b", 5))
    }
    shop = LossBuilder(shapes, sides, 3)
    for name in sides:
        build_term(Hint(pairs=[pair("vector")], teacher=name), shop)
    assert sorted(part.map.out_features for part in shop.aux_modules.values()) == [4, 5]  # type: ignore[union-attr]


def test_the_larger_map_is_averaged_down_in_each_direction() -> None:
    student, teacher = same_size(torch.randn(2, 3, 8, 2), torch.arange(48.0).view(1, 2, 4, 6))
    assert student.shape == (2, 3, 4, 2)
    assert teacher.shape == (1, 2, 4, 2)
    assert teacher[0, 0, 0].tolist() == [1.0, 4.0]


def test_padding_is_no_part_of_a_mean_over_tokens() -> None:
    feature, tokens = torch.randn(2, 4, 3), torch.tensor([[True, True, False, False], [True] * 4])
    found = vectors(feature, "mean", tokens)
    torch.testing.assert_close(found, torch.stack([feature[0, :2].mean(0), feature[1].mean(0)]))
    torch.testing.assert_close(vectors(feature, "first", tokens), feature[:, 0])


REFUSED: list[tuple[LossSpec, str, str]] = [
    (Hint(pairs=[pair("map", "map"), pair("map", "tokens")]), "pairs[1]", "features of one kind, or a reduction"),
    (Hint(pairs=[pair("tokens", "short")]), "pairs[0]", "the same number of tokens in both"),
    (Hint(pairs=[pair("map")], adapter="none"), "pairs[0]", "equal widths, or an adapter"),
    (
        Hint(pairs=[pair("map")], adapter="linear"),
        "adapter",
        "linear does not fit maps of 3 x 4 x 4; accepted: conv1x1",
    ),
    (Hint(pairs=[pair("vector")], adapter="conv1x1"), "adapter", "conv1x1 does not fit vectors of 3; accepted: linear"),
    (Hint(pairs=[pair("video", "map")]), "pairs[0]", "the feature has shape 3 x 4 x 4 x 4"),
    (Rkd(pair=pair("map", "video")), "pair.teacher", "the feature has shape 3 x 4 x 4 x 4"),
    (MiAlpha(pair=pair("video", "map")), "pair.student", "the feature has shape 3 x 4 x 4 x 4"),
    (Lipschitz(pairs=[pair("map"), pair("tokens")]), "pairs[1].student", "accepted: maps"),
    (Overhaul(pairs=[MarginPair(student=Tap(path="map"), teacher=Tap(path="relu"))]), "pairs[0].batch_norm", "a ReLU"),
    (
        Overhaul(pairs=[margin_pair("map"), margin_pair("map", norm="norms.late")]),
        "pairs[1].batch_norm",
        "has 6 channels; accepted: 5",
    ),
    (Overhaul(pairs=[margin_pair("map", norm="nowhere")]), "", "no module 'nowhere'"),
    (
        AttentionRelation(layer=SEPARATE, relation_heads=7),
        "relation_heads",
        "7 is more than the width",
    ),
    (
        AttentionRelation(layer=AttentionPair(student=fused("qkv"), teacher=fused("map")), relation_heads=2),
        "layer.teacher",
        "accepted: tokens",
    ),
    (
        AttentionRelation(layer=AttentionPair(student=fused("tokens"), teacher=fused("short")), relation_heads=1),
        "layer",
        "the same number of tokens in both",
    ),
    (FeatureAutoencoder(tap=Tap(path="vector")), "tap", "accepted: maps"),
    (InheritanceExploration(pair=pair("map")), "name", "no stage before this one has a feature-autoencoder"),
    (InheritanceExploration(pair=pair("narrow", "map")), "pair.student", "one channel"),
    (ActivationBoundary(pairs=[pair("map", "vector")]), "pairs[0]", "features of one kind"),
]


@pytest.mark.parametrize(("spec", "field", "message"), REFUSED, ids=lambda value: getattr(value, "kind", None))
def test_what_does_not_fit_is_refused_by_name(spec: LossSpec, field: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        build_term(spec, builder())
    assert raised.value.param == ".".join(["recipe.losses[1]", *([field] if field else [])])
    assert raised.value.code == "invalid_job"
