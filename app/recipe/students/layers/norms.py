"""Normalisation layers: of images (N, C, H, W), or of tokens (N, S, D)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from app.recipe.base import OneOf, Option, Paper

Normalised = Literal["images", "tokens"]


class NormSpec(Option):
    """Normalisation between the layers of a network."""

    of: ClassVar[frozenset[Normalised]]
    """Kinds of tensors that it can normalise."""
    vectors: ClassVar[int]
    """Vectors of one trained weight per channel: a scale, and an offset."""
    keeps: ClassVar[int]
    """Tensors of the size of its input that the backward pass needs, without its output."""

    @property
    def needs_bias(self) -> bool:
        """Whether it has no offset, so that the convolution before it needs one."""
        return self.vectors < 2

    def divides(self, channels: int) -> bool:
        """Whether it can normalise this number of channels."""
        return True


class BatchNorm(NormSpec):
    """Batch normalisation: each channel by its mean and variance in the batch; in evaluation by their running means.

    Processes that share a batch each use the statistics of their share.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", "1502.03167"
    )
    of = frozenset({"images"})
    vectors, keeps = 2, 1
    kind: Literal["batch"] = "batch"


class LayerNorm(NormSpec):
    """Layer normalisation: each token by the mean and variance of its numbers, each image by those of all its channels
    and pixels together; scale and offset are per channel. It does not depend on the batch."""

    paper: ClassVar[Paper | None] = Paper("Layer Normalization", "1607.06450")
    of = frozenset({"images", "tokens"})
    vectors, keeps = 2, 1
    kind: Literal["layer"] = "layer"


class GroupNorm(NormSpec):
    """Group normalisation: each group of neighbouring channels of an image by its mean and variance. It does not depend
    on the batch."""

    paper: ClassVar[Paper | None] = Paper("Group Normalization", "1803.08494")
    of = frozenset({"images"})
    vectors, keeps = 2, 1
    kind: Literal["group"] = "group"
    groups: int = Field(8, ge=1, le=1024)
    """Groups of channels; must divide the channels of every layer that is normalised."""

    def divides(self, channels: int) -> bool:
        return channels % self.groups == 0


class RmsNorm(NormSpec):
    """Root mean square normalisation: each token, or image, divided by the root of the mean of its squares over the
    same axes as layer normalisation; with a scale per channel and no offset, which convolutions have instead."""

    paper: ClassVar[Paper | None] = Paper("Root Mean Square Layer Normalization", "1910.07467")
    of = frozenset({"images", "tokens"})
    vectors, keeps = 1, 2
    kind: Literal["rms"] = "rms"


class NoNorm(NormSpec):
    """No normalisation; convolutions have an offset instead."""

    of = frozenset({"images"})
    vectors, keeps = 0, 0
    kind: Literal["none"] = "none"


NORMS: tuple[type[NormSpec], ...] = (BatchNorm, LayerNorm, GroupNorm, RmsNorm, NoNorm)
"""All kinds."""
IMAGE_NORMS = tuple(kind for kind in NORMS if "images" in kind.of)
TOKEN_NORMS = tuple(kind for kind in NORMS if "tokens" in kind.of)


def _refuse_what_is_not_for(place: Normalised) -> BeforeValidator:
    """Refuses existing kinds that are not for `place`, with the reason."""
    elsewhere = {_tag(kind): " and ".join(sorted(kind.of)) for kind in NORMS if place not in kind.of}
    here = ", ".join(_tag(kind) for kind in NORMS if place in kind.of)

    def check(given: Any) -> Any:
        kind = given.get("kind") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind in elsewhere:
            raise ValueError(f"{kind} is for networks of {elsewhere[kind]}, not of {place}; accepted: {here}")
        return given

    return BeforeValidator(check)


def _tag(kind: type[NormSpec]) -> str:
    return str(kind.model_fields["kind"].default)


Norm = Annotated[NormSpec, OneOf(NORMS)]
ImageNorm = Annotated[NormSpec, OneOf(IMAGE_NORMS), _refuse_what_is_not_for("images")]
TokenNorm = Annotated[NormSpec, OneOf(TOKEN_NORMS), _refuse_what_is_not_for("tokens")]
