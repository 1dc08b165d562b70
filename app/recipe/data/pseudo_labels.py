"""Batches of self-supervision that are drawn by pseudo labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.recipe.base import Positive, Spec


class PseudoLabels(Spec):
    """G-SimCLR (2009.12007): clusters of the training images, of which no batch has two images of one.

    Images that look alike are then no negatives of each other. Clusters are found by k-means before the first step and
    stored in the checkpoints. Once fewer clusters than the batch has places have images left in an epoch, its last
    batches have several of one.
    """

    source: Literal["autoencoder", "teacher"] = "autoencoder"
    """What is clustered: codes of a small denoising autoencoder that is trained on the images first, or the vectors of
    the (first) teacher."""
    clusters: int | None = Field(None, ge=2, le=65_536)
    """Number of clusters, at least `batch_size`; none: `batch_size`, as in the paper."""
    epochs: int = Field(20, ge=1, le=1000)
    """Passes of the autoencoder over the images, which are reduced to 32 x 32 pixels at most."""
    dimensions: int = Field(64, ge=1, le=4096)
    """Numbers of the autoencoder's code."""
    noise: Positive = 0.5
    """Standard deviation of the noise that the autoencoder removes, for pixels with a mean of 0 and a deviation of
    1."""
