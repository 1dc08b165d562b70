"""Where a job's samples come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.recipe.base import Fraction, Reference, Spec


class ImageData(Spec):
    """Images and class labels in NumPy archives (`.npz`)."""

    train: Reference
    """File with the samples to train on."""

    eval: Reference | None = None
    """File with the samples to evaluate on; none: a stratified share of `train` is held out."""

    format: Literal["npz"] = "npz"
    """File format: a NumPy archive with one array of images and one of labels."""

    input_key: str = Field("x", min_length=1, max_length=128)
    """Name of the array of images: (N, H, W) or (N, H, W, C), uint8 or floating point."""

    label_key: str = Field("y", min_length=1, max_length=128)
    """Name of the array of labels: (N,), integers from 0 to classes - 1."""

    layout: Literal["NHWC", "NCHW"] = "NHWC"
    """Order of the axes of a four-dimensional array of images."""

    classes: int | None = Field(None, ge=2, le=100_000)
    """Number of classes; none: the teacher's, or else the largest label plus one."""

    eval_fraction: Fraction = 0.2
    """Share of `train` held out when `eval` is not given (stratified by label, drawn from the seed)."""
