"""Which norms a network accepts, and how a wrong one is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.recipe.students.architectures import CifarResNet, Vit
from app.recipe.students.layers import IMAGE_NORMS, NORMS, TOKEN_NORMS, BatchNorm, GroupNorm, LayerNorm, NoNorm, RmsNorm


def test_images_have_every_norm_and_tokens_those_of_a_single_token() -> None:
    assert set(IMAGE_NORMS) == set(NORMS)
    assert set(TOKEN_NORMS) == {LayerNorm, RmsNorm}


@pytest.mark.parametrize("kind", ["batch", "group", "none"])
def test_a_norm_of_images_is_refused_for_tokens_with_what_is_accepted(kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Vit.model_validate({"architecture": "vit", "norm": {"kind": kind}})
    [error] = caught.value.errors()
    assert error["loc"] == ("norm",)
    assert f"{kind} is for networks of images" in error["msg"]
    assert error["msg"].endswith("accepted: layer, rms")


def test_an_unknown_norm_is_refused_by_its_tag() -> None:
    with pytest.raises(ValidationError) as caught:
        CifarResNet.model_validate({"architecture": "cifar-resnet", "norm": {"kind": "weight"}})
    [error] = caught.value.errors()
    assert (error["loc"], error["type"]) == (("norm",), "union_tag_invalid")


def test_groups_divide_channels_or_do_not() -> None:
    assert GroupNorm(groups=4).divides(12)
    assert not GroupNorm(groups=8).divides(12)
    assert all(norm.divides(7) for norm in (BatchNorm(), LayerNorm(), RmsNorm(), NoNorm()))


def test_a_convolution_needs_an_offset_where_its_norm_has_none() -> None:
    assert [norm.kind for norm in (BatchNorm(), LayerNorm(), GroupNorm(), RmsNorm(), NoNorm()) if norm.needs_bias] == [
        "rms",
        "none",
    ]
