"""Which norms a network accepts, and how a wrong one is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.recipe.students.architectures import CifarResNet, Vit
from app.recipe.students.layers import (
    IMAGE_NORMS,
    NORMS,
    TOKEN_NORMS,
    BatchNorm,
    CrmsNorm,
    GroupNorm,
    L1BatchNorm,
    L1LayerNorm,
    LayerNorm,
    NoNorm,
    PowerNorm,
    RmsNorm,
    UnifiedNorm,
)
from app.recipe.students.replacements import Replacement


def test_images_have_every_norm_but_those_of_tokens() -> None:
    assert set(IMAGE_NORMS) == set(NORMS) - {CrmsNorm, PowerNorm}
    assert set(TOKEN_NORMS) == {LayerNorm, RmsNorm, CrmsNorm, PowerNorm, UnifiedNorm, L1LayerNorm}


@pytest.mark.parametrize("kind", ["batch", "group", "none", "l1-batch"])
def test_a_norm_of_images_is_refused_for_tokens_with_what_is_accepted(kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Vit.model_validate({"architecture": "vit", "norm": {"kind": kind}})
    [error] = caught.value.errors()
    assert error["loc"] == ("norm",)
    assert f"{kind} is for networks of images" in error["msg"]
    assert error["msg"].endswith("accepted: layer, rms, crms, power, unified, l1-layer")


@pytest.mark.parametrize("kind", ["crms", "power"])
def test_a_norm_of_tokens_is_refused_for_images_with_what_is_accepted(kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CifarResNet.model_validate({"architecture": "cifar-resnet", "norm": {"kind": kind}})
    [error] = caught.value.errors()
    assert error["msg"].endswith(
        f"{kind} is for networks of tokens, not of images; accepted: "
        "batch, layer, group, rms, unified, l1-batch, l1-layer, none"
    )


def test_an_unknown_norm_is_refused_by_its_tag() -> None:
    with pytest.raises(ValidationError) as caught:
        CifarResNet.model_validate({"architecture": "cifar-resnet", "norm": {"kind": "weight"}})
    [error] = caught.value.errors()
    assert (error["loc"], error["type"]) == (("norm",), "union_tag_invalid")


def test_groups_divide_channels_or_do_not() -> None:
    assert GroupNorm(groups=4).divides(12)
    assert not GroupNorm(groups=8).divides(12)
    assert PowerNorm(groups=4).divides(12)
    assert not PowerNorm(groups=8).divides(12)
    assert all(norm.divides(7) for norm in (BatchNorm(), LayerNorm(), RmsNorm(), NoNorm()))


def test_settings_that_came_later_are_left_out_of_a_description_if_they_are_the_defaults() -> None:
    assert LayerNorm().model_dump() == {"kind": "layer"}
    assert RmsNorm().model_dump() == {"kind": "rms"}
    assert RmsNorm(eps=1e-8, eps_mode="outside").model_dump() == {"kind": "rms", "eps": 1e-8, "eps_mode": "outside"}


def test_a_convolution_needs_an_offset_where_its_norm_has_none() -> None:
    assert [
        norm.kind for norm in (BatchNorm(), L1BatchNorm(), GroupNorm(), RmsNorm(), NoNorm()) if norm.needs_bias
    ] == [
        "rms",
        "none",
    ]


@pytest.mark.parametrize("kind", ["power", "unified"])
def test_statistics_of_batches_are_refused_in_a_librarys_network(kind: str) -> None:
    with pytest.raises(ValidationError, match="leave out padding; accepted: layer, rms, crms, l1-layer"):
        Replacement.model_validate({"match": "*.LayerNorm", "with": {"kind": kind}})
