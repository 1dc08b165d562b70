"""Losses of self-supervision, which compare two augmented views of each image.

Notation of the equations: a_i and b_i the views of image i of a batch of B, as unit vectors after the projection.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import InputKind, Paper
from app.recipe.losses.base import Temperature
from app.recipe.losses.embeddings import EmbeddingTerm
from app.recipe.losses.features import PartName


class NtXent(EmbeddingTerm):
    """NT-Xent (SimCLR): finds the other view of an image among all other views of the batch.

    The projection is trained beside the student and is not exported: the exported vectors are those before it, which
    are known to be the better features.
    """

    needs_teacher: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = True
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    views: ClassVar[int] = 2
    paper: ClassVar[Paper | None] = Paper(
        "A Simple Framework for Contrastive Learning of Visual Representations", "2002.05709"
    )
    equation: ClassVar[str] = (
        "mean over all 2 B views of -log softmax(cosines / temperature) at the other view, over all views but itself"
    )
    applies: ClassVar[str] = (
        "Images without labels. Better with large batches; not with `accumulate` above 1, nor several processes."
    )
    kind: Literal["ntxent"] = "ntxent"
    temperature: Temperature = 0.5
    """Divides the cosines: 0.5 in SimCLR on CIFAR-10, 0.1 on ImageNet and in G-SimCLR."""
    projection: Literal["mlp", "linear", "none"] = "mlp"
    """Maps the student's vector before it is compared: two layers with a ReLU between them, one layer, or nothing, so
    that the student's own last layer is what the loss compares."""
    hidden: int | None = Field(None, ge=1, le=16_384)
    """Width between the layers of the mlp; none: that of the student's vector."""
    dimensions: int = Field(128, ge=1, le=4096)
    """Numbers of a projected vector."""
    name: PartName = "views"
    """Name of the projection: terms and stages with the same name share it, if its sizes are the same."""

    @property
    def needs_plain_steps(self) -> bool:
        return True
