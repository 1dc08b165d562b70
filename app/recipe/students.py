"""The built-in zoo: which architectures can be built, and the numbers that shape each."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Option, Paper

Width = Annotated[int, Field(ge=1, le=16_384)]


class Mlp(Option):
    """Multi-layer perceptron over the flattened image: linear layers with ReLU between them."""

    architecture: Literal["mlp"] = "mlp"
    hidden: list[Width] = Field(default=[64], max_length=16)
    """Width of each hidden layer, in units; an empty list gives a linear classifier."""


class CifarResNet(Option):
    """ResNet for small images: three stages of basic blocks, parameter-free (option A) shortcuts."""

    paper: ClassVar[Paper | None] = Paper("Deep Residual Learning for Image Recognition", "1512.03385")
    architecture: Literal["cifar-resnet"] = "cifar-resnet"
    depth: Literal[8, 14, 20, 32, 44, 56, 110] = 20
    """Number of weighted layers: 6n + 2."""
    width: Width = 16
    """Channels of the first stage; each later stage doubles them."""


class WideResNet(Option):
    """Wide residual network: pre-activation basic blocks in three stages, 1x1 shortcuts where the width changes."""

    paper: ClassVar[Paper | None] = Paper("Wide Residual Networks", "1605.07146")
    architecture: Literal["wide-resnet"] = "wide-resnet"
    depth: Literal[10, 16, 22, 28, 40] = 16
    """Number of weighted layers: 6n + 4."""
    widen: int = Field(1, ge=1, le=20)
    """Multiple of the base widths 16, 32, 64."""


class Vit(Option):
    """Small vision transformer: patch embedding, class token, learned positions, pre-norm blocks."""

    paper: ClassVar[Paper | None] = Paper("An Image is Worth 16x16 Words", "2010.11929")
    architecture: Literal["vit"] = "vit"
    patch_size: int = Field(4, ge=1, le=64)
    """Side of a square patch, in pixels; must divide the image's height and width."""
    width: Width = 64
    """Size of a token's embedding; must be a multiple of `heads`."""
    depth: int = Field(4, ge=1, le=64)
    """Number of transformer blocks."""
    heads: int = Field(4, ge=1, le=64)
    """Number of attention heads."""
    mlp_ratio: float = Field(4.0, gt=0.0, le=16.0)
    """Width of a block's feed-forward layer as a multiple of `width`."""


Student = Annotated[Mlp | CifarResNet | WideResNet | Vit, Field(discriminator="architecture")]
STUDENTS: tuple[type[Option], ...] = (Mlp, CifarResNet, WideResNet, Vit)
