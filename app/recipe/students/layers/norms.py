"""Normalisation layers: of images (N, C, H, W), or of tokens (N, S, D)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from app.recipe.base import Fraction, OneOf, Option, Paper
from app.recipe.students.layers.base import by_default

Normalised = Literal["images", "tokens"]
Epsilon = Annotated[float, Field(gt=0.0, le=0.1)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class NormSpec(Option):
    """Normalisation between the layers of a network."""

    of: ClassVar[frozenset[Normalised]]
    """Kinds of tensors that it can normalise."""
    vectors: ClassVar[int]
    """Vectors of one trained weight per channel: a scale, and an offset."""
    keeps: ClassVar[int]
    """Tensors of the size of its input that the backward pass needs, without its output."""
    statistics: ClassVar[tuple[str, ...]] = ()
    """Names of its stored tensors that are not trained."""
    twice_differentiable: ClassVar[bool] = True
    """Whether its gradient is that of its output, so that it can be differentiated again."""
    kind: str
    """Which norm."""

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
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    kind: Literal["batch"] = "batch"


class LayerNorm(NormSpec):
    """Layer normalisation: each token by the mean and variance of its numbers, each image by those of all its channels
    and pixels together; scale and offset are per channel. It does not depend on the batch."""

    paper: ClassVar[Paper | None] = Paper("Layer Normalization", "1607.06450")
    of = frozenset({"images", "tokens"})
    vectors, keeps = 2, 1
    kind: Literal["layer"] = "layer"
    eps: Epsilon = by_default(1e-5)
    """Added to the variance."""


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
    eps: Epsilon = by_default(1e-6)
    """Keeps the divisor above 0; see `eps_mode`."""
    eps_mode: Literal["inside", "outside"] = by_default("inside")
    """`inside`: eps is added to the mean of squares; `outside`: to its root, as in the paper's own code (with an eps of
    1e-8)."""
    partial: Fraction | None = by_default(None)
    """Share of the channels whose squares are averaged, the leading ones, rounded down but at least one (pRMSNorm);
    null: all."""


class CrmsNorm(NormSpec):
    """Compressed root mean square normalisation: the `rms` of the vector of mean zero that has one entry more than the
    token, minus the sum of its entries: x / sqrt((sum x_i^2 + (sum x_i)^2) / (D + 1) + eps), with a scale per channel
    and no offset."""

    paper: ClassVar[Paper | None] = Paper(
        "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers", "2305.14858"
    )
    of = frozenset({"tokens"})
    vectors, keeps = 1, 2
    kind: Literal["crms"] = "crms"
    eps: Epsilon = 1e-5
    """Added to the mean of squares."""


class PowerNorm(NormSpec):
    """Power normalisation: each token divided by its root mean square, then each channel by the root of a running mean
    of its squares, so that in evaluation that is one factor per channel. The gradient is an approximation, with a
    running mean of its own. Scale and offset are per channel.

    Processes that share a batch normalise by the statistics of all of it; with `accumulate`, each micro-batch is a step
    of the running means.
    """

    paper: ClassVar[Paper | None] = Paper("PowerNorm: Rethinking Batch Normalization in Transformers", "2003.07845")
    of = frozenset({"tokens"})
    vectors, keeps = 2, 2
    statistics = ("running_phi", "ema_gz", "iterations")
    twice_differentiable = False
    kind: Literal["power"] = "power"
    groups: int = Field(1, ge=1, le=1024)
    """Groups of neighbouring channels, each divided by a root mean square of its own; must divide the width."""
    forward_decay: Decay = 0.9
    """Share of the running mean of squares that is kept at each step."""
    backward_decay: Decay = 0.9
    """One minus the share of the accumulated gradient that is subtracted from the gradient."""
    eps: Epsilon = 1e-5
    """Added to means of squares."""
    warmup_steps: int = Field(10_000, ge=0)
    """Forward passes in training in which a channel is divided by its root mean square in the batch instead."""

    def divides(self, channels: int) -> bool:
        return channels % self.groups == 0


class UnifiedNorm(NormSpec):
    """Unified normalisation: each channel divided by the root of the geometric mean of its mean squares in the last
    batches; in evaluation by a running mean, so that it is one factor per channel. Gradients are smoothed over the same
    batches. Scale and offset are per channel.

    Processes that share a batch normalise by the statistics of all of it; with `accumulate`, each micro-batch is a step
    of the window.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Unified Normalization for Accelerating and Stabilizing Transformers", "2208.01313"
    )
    of = frozenset({"images", "tokens"})
    vectors, keeps = 2, 1
    statistics = ("buffer_x2", "buffer_gz", "running_var", "ema_gz", "iterations")
    twice_differentiable = False
    kind: Literal["unified"] = "unified"
    window: int = Field(4, ge=1, le=64)
    """Batches whose statistics are averaged."""
    decay: Decay = 0.9
    """Share of the running means that is kept at each step."""
    eps: Epsilon = 1e-5
    """Added to means of squares."""
    warmup_steps: int = Field(4000, ge=0)
    """Forward passes in training before statistics are averaged over the window."""
    clamp_after: int = Field(1000, ge=0)
    """Forward passes in training, at least the warm-up's, before gradients are scaled by the ratio of the window's root
    mean square to the running one, kept between 1/5 and 5; the paper's code has 1000."""
    filter_outliers: bool = True
    """Whether a batch is normalised by its own statistics, and left out of the window, if in any channel the arithmetic
    mean over the window exceeds the geometric one too far; in the paper on for images, off for texts."""


class L1BatchNorm(NormSpec):
    """L1 batch normalisation: each channel minus its mean in the batch, divided by its mean absolute deviation; in
    evaluation by running means of both. Scale and offset are per channel.

    Processes that share a batch each use the statistics of their share. The mean absolute deviation of normal values is
    0.798 times their standard deviation.
    """

    paper: ClassVar[Paper | None] = Paper("Towards Accurate and Efficient Sub-8-Bit Integer Training", "2411.10948")
    of = frozenset({"images"})
    vectors, keeps = 2, 2
    statistics = ("running_mean", "running_deviation")
    kind: Literal["l1-batch"] = "l1-batch"
    eps: Epsilon = 1e-5
    """Added to the mean absolute deviation."""


class L1LayerNorm(NormSpec):
    """L1 layer normalisation: each token minus the mean of its numbers, divided by their mean absolute deviation, each
    image by those of all its channels and pixels together; scale and offset are per channel."""

    paper: ClassVar[Paper | None] = L1BatchNorm.paper
    of = frozenset({"images", "tokens"})
    vectors, keeps = 2, 2
    kind: Literal["l1-layer"] = "l1-layer"
    eps: Epsilon = 1e-5
    """Added to the mean absolute deviation."""


class NoNorm(NormSpec):
    """No normalisation; convolutions have an offset instead."""

    of = frozenset({"images"})
    vectors, keeps = 0, 0
    kind: Literal["none"] = "none"


NORMS: tuple[type[NormSpec], ...] = (
    BatchNorm,
    LayerNorm,
    GroupNorm,
    RmsNorm,
    CrmsNorm,
    PowerNorm,
    UnifiedNorm,
    L1BatchNorm,
    L1LayerNorm,
    NoNorm,
)
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


SINGLE_TOKEN_NORMS = tuple(kind for kind in TOKEN_NORMS if not kind.statistics)
"""Norms that look at one token alone."""
Norm = Annotated[NormSpec, OneOf(NORMS)]
ImageNorm = Annotated[NormSpec, OneOf(IMAGE_NORMS), _refuse_what_is_not_for("images")]
TokenNorm = Annotated[NormSpec, OneOf(TOKEN_NORMS), _refuse_what_is_not_for("tokens")]
