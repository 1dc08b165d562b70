"""Loss terms for students that reconstruct a teacher's features; notation as in `features`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, InputKind, Paper
from app.recipe.losses.base import LossSpec
from app.recipe.losses.features import FeatureTerm, PartName
from app.recipe.losses.taps import Pair, Tap, Taps, taps_of
from app.recipe.losses.weights import Weight

INP_FORMER = Paper(
    "Exploring Intrinsic Normal Prototypes within a Single Image for Universal Anomaly Detection", "2503.02424"
)
Gamma = Annotated[float, Field(ge=0.0, le=16.0)]
"""Power of relative distances."""


class MinedReconstruction(FeatureTerm):
    """Soft mining loss of INP-Former: cosine of whole maps, with larger gradients where the student is worst.

    A position is a pixel of a map or a token, and d its distance 1 - cos over the channels. The gradient at the
    student's feature is multiplied there by w; if all d are 0, w is 1. The value is that without mining, as in the
    authors' code; the paper has w in the loss, which has the same gradient.
    """

    paper: ClassVar[Paper | None] = INP_FORMER
    couples_rows: ClassVar[bool] = True
    gathers: ClassVar[bool] = True
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    equation: ClassVar[str] = (
        "mean over pairs of 1 - cos(r(s), t) of whole maps; gradients at r(s) times w = (d / mean d)^gamma at each "
        "position, mean over the positions of the batch"
    )
    applies: ClassVar[str] = (
        "Tasks on images; maps or tokens of a teacher. Not with `accumulate` above 1; several processes use the mean "
        "of all."
    )
    kind: Literal["inp-former"] = "inp-former"
    pairs: list[Pair] = Field(min_length=1, max_length=32)
    """Which features are compared."""
    gamma: Gamma = 3.0
    """Power of the relative distances; 0 is the plain cosine, without mining."""
    adapter: Literal["auto", "linear", "conv1x1", "none"] = "auto"
    """Maps the student's width to the teacher's, as in `hint`."""
    name: PartName = "inp-former"
    """Name of the adapters: terms and stages with the same name share them if their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)


ENCODED, DECODED = Tap(path="encoded"), Tap(path="decoded")
"""Features (B, G, S, D) of the frozen encoder within a student `inp-former`, and their reconstructions: G groups of
layers, S positions."""
TOKENS, PROTOTYPES = Tap(path="tokens"), Tap(path="prototypes")
"""The mean (B, S, D) of all these features of the encoder, and the prototypes (B, M, D) that are extracted from it."""


class ReconstructionTerm(LossSpec):
    """A term on a student `inp-former`, whose encoder takes the place of a teacher."""

    needs_teacher: ClassVar[bool] = False
    answers: ClassVar[frozenset[Answer]] = frozenset({"anomalies"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    paper: ClassVar[Paper | None] = INP_FORMER


class FeatureReconstruction(ReconstructionTerm):
    """Soft mining loss of INP-Former between features of the student's encoder and their reconstructions.

    Value and gradients are those of `inp-former`, with a pair for each group of the student's `layers`.
    """

    couples_rows: ClassVar[bool] = True
    gathers: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "mean over groups of layers of 1 - cos(s, t) of whole features; gradients at s times w = (d / mean d)^gamma at "
        "each position, mean over the positions of the batch"
    )
    applies: ClassVar[str] = (
        "anomaly-detection, with a student `inp-former`. Not with `accumulate` above 1; several processes use the mean "
        "of all."
    )
    kind: Literal["feature-reconstruction"] = "feature-reconstruction"
    gamma: Gamma = 3.0
    """Power of the relative distances; 0 is the plain cosine, without mining."""

    def taps(self) -> Taps:
        return Taps((DECODED, ENCODED))


class PrototypeCoherence(ReconstructionTerm):
    """Coherence loss of INP-Former: every token of the encoder is near one of the prototypes of its image.

    Without it the prototypes need not be of normal parts. The gradient reaches the nearest prototype alone.
    """

    equation: ClassVar[str] = "mean over the tokens of min_m (1 - cos(token, prototype_m))"
    applies: ClassVar[str] = "anomaly-detection, with a student `inp-former`; beside `feature-reconstruction`."
    kind: Literal["prototype-coherence"] = "prototype-coherence"
    weight: Weight = 0.2
    """Factor of this term in the objective: a number, or a ramp over a stage."""

    def taps(self) -> Taps:
        return Taps((TOKENS, PROTOTYPES))
