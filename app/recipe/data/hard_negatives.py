"""Batches by class whose classes the student confuses."""

from __future__ import annotations

from pydantic import Field

from app.recipe.base import Spec


class HardNegatives(Spec):
    """Hard negatives from a pool (CFCD, 2308.04008): a batch has classes that are close to each other.

    Every `every` steps the student embeds a pool of training images as it is then. A batch has anchor classes, which
    take turns in a random order, and with each of them the classes whose mean vectors in the pool have the largest
    cosines to its own; what the pool has no image of is drawn at random.
    """

    pool: int = Field(2048, ge=2, le=65_536)
    """Training images that the student embeds, drawn from the seed at each refresh, with as equal a number of each
    class as possible; all images if there are fewer."""
    every: int = Field(200, ge=1)
    """Optimizer steps between two refreshes. A refresh takes as many forward passes as the pool has images."""
    neighbours: int | None = Field(None, ge=1, le=1024)
    """Nearest classes that each anchor class brings into a batch; none: a batch has one anchor class."""
