"""What a stored model says of itself (`config.json` of its bundle): enough to build it, feed it and read its answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.recipe.base import Positive, Spec
from app.recipe.students import Student

MAX_SIDE, MAX_CHANNELS = 4096, 1024
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class ImageInput(Spec):
    """Shape of one input image."""

    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    height: Side
    width: Side


class Preprocessing(Spec):
    """Maps raw pixels to what the network was trained on: (pixel * scale - mean) / std, per channel."""

    scale: Positive = 1.0
    """Multiplies raw pixel values; 1/255 for uint8 images."""
    mean: list[FiniteFloat] = Field(min_length=1)
    """One value per channel, in scaled units."""
    std: list[Positive] = Field(min_length=1)
    """One value per channel, in scaled units."""


class ModelConfig(Spec):
    """Description of a model's weights."""

    task: Literal["image-classification"] = "image-classification"
    architecture: Student
    """The network, as a student of the zoo."""
    input: ImageInput
    preprocessing: Preprocessing
    classes: int = Field(ge=2, le=100_000)
    """Number of logits."""
