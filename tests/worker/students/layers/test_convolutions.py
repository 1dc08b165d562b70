"""Convolutions, and whether they have an offset."""

from __future__ import annotations

import pytest
import torch

from app.recipe.students.layers import IMAGE_NORMS, GroupNorm, NoNorm, NormSpec, Relu, RmsNorm
from worker.students.layers.convolutions import ImageLayers, init_residual


@pytest.mark.parametrize("norm", IMAGE_NORMS, ids=lambda norm: norm.__name__)
def test_a_convolution_has_an_offset_where_the_norm_has_none(norm: type[NormSpec]) -> None:
    conv = ImageLayers(norm(), Relu()).conv(3, 8)
    assert (conv.bias is not None) == (norm in (RmsNorm, NoNorm))
    assert conv.bias is None or not conv.bias.any()


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 7), (3, 2, 4), (1, 1, 7), (1, 2, 4)])
def test_a_stride_halves_the_sides_rounding_up(kernel: int, stride: int, side: int) -> None:
    layers = ImageLayers(GroupNorm(groups=2), Relu())
    out = torch.nn.Sequential(*layers.conv_norm(3, 8, kernel, stride))(torch.randn(2, 3, 7, 7))
    assert out.shape == (2, 8, side, side)


def test_weights_begin_with_the_variance_that_a_relu_halves() -> None:
    torch.manual_seed(0)
    conv = ImageLayers(NoNorm(), Relu()).conv(64, 64)
    init_residual(conv)
    assert conv.weight.var().item() == pytest.approx(2 / (9 * 64), rel=0.05)
