"""The loss terms that look inside the networks. Each has one class of the same kind in `worker/losses/features`.

Notation of the equations: s and t the features of student and teacher, r(s) the student's after its adapter, B the
number of rows. A pair's features are vectors (B, D), tokens (B, S, D) or maps (B, C, H, W). Where the two maps of a
pair differ in height or width, the larger one is averaged down to the smaller (adaptive average pooling).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from app.recipe.base import EVERY_ANSWER, Answer, NonNegative, Paper, Positive, Share, Spec
from app.recipe.losses.base import LossSpec
from app.recipe.losses.taps import PATH, Pair, Tap, Taps, taps_of
from app.recipe.losses.weights import Weight

PartName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""Names what a term trains; terms and stages that give the same name for the same places share it."""
Power = Annotated[float, Field(ge=1.0, le=16.0)]
Reduction = Literal["first", "mean"]
"""What becomes one vector of tokens: the first one (a class token), or the mean of those that aren't padding. Maps are
always averaged over their positions."""
IE_KD = Paper(
    "Revisiting Knowledge Distillation: An Inheritance and Exploration Framework",
    "2107.00181",
)


class FeatureTerm(LossSpec):
    """A term that compares features; what it does not need of a task's answer makes it fit for every task, but for
    causal-lm, whose rows are tokens, only where it says so."""

    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER - {"tokens"}


class Hint(FeatureTerm):
    """FitNets: the student's feature becomes the teacher's, through an adapter.

    With `reduction` this is also the `mse` of Distiller's family (arXiv 2109.11105), whose other members are
    `mi-alpha`. To train hints first and labels later, as the paper does, put it in a stage of its own.
    """

    paper: ClassVar[Paper | None] = Paper("FitNets: Hints for Thin Deep Nets", "1412.6550")
    equation: ClassVar[str] = "sum over pairs of the mean over a row's entries of (r(s) - t)^2"
    applies: ClassVar[str] = "Any task and any pair of features of the same kind: vectors, tokens or maps."
    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER
    kind: Literal["hint"] = "hint"
    pairs: list[Pair] = Field(min_length=1, max_length=32)
    """Which features are compared."""
    adapter: Literal["auto", "linear", "conv1x1", "none"] = "auto"
    """Brings the student's width to the teacher's: `linear` for vectors and tokens, `conv1x1` for maps, `auto` the one
    of them that fits, or none where the widths are equal."""
    reduction: Literal["none", "first", "mean"] = "none"
    """Makes one vector of each side first, so that features of different kinds can be compared: of tokens the `first`
    one, or the `mean` of those that aren't padding; of maps the mean over their positions."""
    name: PartName = "hint"
    """Of the adapters: terms and stages with the same name share them where their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)


class Rkd(FeatureTerm):
    """Relational KD: distances between the samples of a batch, and angles between any three of them.

    Where two rows are equal in the student but not in the teacher, the angles' gradient is of the order of 1e10, as in
    the authors' code: clip it if that can be.
    """

    paper: ClassVar[Paper | None] = Paper("Relational Knowledge Distillation", "1904.05068")
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "distance mean_ij huber(d_ij(s) - d_ij(t)) + angle mean_ijk huber(cos_ijk(s) - cos_ijk(t)), "
        "d in units of its mean"
    )
    applies: ClassVar[str] = (
        "Any task; widths may differ. Angles take time and memory with the cube of the batch; not with `accumulate` "
        "above 1."
    )
    kind: Literal["rkd"] = "rkd"
    pair: Pair | None = None
    """Features to take as embeddings; none: the outputs of both sides."""
    reduction: Reduction = "first"
    """Of tokens the `first` one, or the `mean` of those that aren't padding; of maps the mean over their positions."""
    distance: NonNegative = 25.0
    """Weight of the distances; 1 in metric learning."""
    angle: NonNegative = 50.0
    """Weight of the angles; 2 in metric learning."""
    delta: Positive = 1.0
    """Where the Huber loss turns from square to straight."""

    def taps(self) -> Taps:
        return taps_of([self.pair] if self.pair else [])

    @model_validator(mode="after")
    def _compares_something(self) -> Self:
        if self.distance == self.angle == 0.0:
            raise ValueError("distance and angle must not both be 0")
        return self


class Projections(Spec):
    """Where a self-attention layer's queries, keys and values come out, (B, S, D) each."""

    queries: Tap | None = None
    """Where the queries come out."""
    keys: Tap | None = None
    """Where the keys come out."""
    values: Tap | None = None
    """Where the values come out."""
    qkv: Tap | None = None
    """One projection (B, S, 3 D) that gives all three side by side, in this order, instead of three."""

    @model_validator(mode="after")
    def _all_three(self) -> Self:
        three = [tap for tap in (self.queries, self.keys, self.values) if tap is not None]
        if len(three) != (0 if self.qkv else 3):
            raise ValueError("must give queries, keys and values, or qkv alone")
        return self

    def taps(self) -> tuple[Tap, ...]:
        """The one or three places."""
        return tuple(tap for tap in (self.queries, self.keys, self.values, self.qkv) if tap is not None)


class AttentionPair(Spec):
    """A self-attention layer of the teacher, and the one of the student that is to become like it."""

    teacher: Projections
    """The teacher's projections."""
    student: Projections
    """The student's projections."""


class AttentionRelation(FeatureTerm):
    """Relations between the tokens within queries, keys and values of one layer, usually the last."""

    paper: ClassVar[Paper | None] = Paper(
        "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models",
        "2201.12507",
    )
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "sum over Q, K, V of KL(softmax(R(t)) || softmax(R(s))), R(x) = x x^T / sqrt(d) in every head of width d"
    )
    applies: ClassVar[str] = (
        "Transformers that see the same tokens; widths and numbers of heads may differ. Not with `accumulate` above 1."
    )
    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER
    kind: Literal["attention-relation"] = "attention-relation"
    layer: AttentionPair
    """Which layers are compared."""
    relation_heads: int = Field(12, ge=1, le=1024)
    """Parts that each side's width is split into; what does not divide is left out at the end."""
    relation: Literal["kl", "mse"] = "kl"
    """`kl` compares distributions over the tokens that aren't padding, as a mean over all of the batch that are not;
    `mse` compares the scores themselves with padding and all, as the authors' code does."""

    def taps(self) -> Taps:
        return Taps(self.layer.student.taps(), self.layer.teacher.taps())


class Connected(FeatureTerm):
    """A term on features before their activation, behind the connectors of 1904.01866."""

    couples_rows: ClassVar[bool] = True
    adapter: Literal["connector", "none"] = "connector"
    """`connector`: a 1x1 convolution (a linear layer for vectors and tokens) and batch norm, as the authors have it;
    `none` compares as is."""


class MarginPair(Pair):
    """Both places lie before a ReLU; in the teacher, right behind a batch norm."""

    batch_norm: str | None = Field(None, max_length=512, pattern=PATH)
    """The teacher's batch norm that the margins come from; none: the module at the teacher's tap."""


class Overhaul(Connected):
    """Overhaul of feature distillation: what is negative in the teacher need only be negative in the student."""

    paper: ClassVar[Paper | None] = Paper("A Comprehensive Overhaul of Feature Distillation", "1904.01866")
    equation: ClassVar[str] = (
        "sum over pairs i of 2^(i - last) |r(s) - t'|^2 over the entries with r(s) > t' or t' > 0, t' = max(t, margin)"
    )
    applies: ClassVar[str] = (
        "Networks with batch norm before their ReLUs; any task. Not with `accumulate` above 1: the connectors' batch "
        "norm wants the whole batch."
    )
    kind: Literal["overhaul"] = "overhaul"
    weight: Weight = 1e-3
    """Factor of this term in the objective: a number, or a ramp over a stage. 1e-3 for small images, 1e-4 on ImageNet,
    1e-5 for segmentation."""
    pairs: list[MarginPair] = Field(min_length=1, max_length=32)
    """Which features are compared, from the first to the last: each counts twice as much as the one before it."""
    name: PartName = "overhaul"
    """Of the connectors: terms and stages with the same name share them where their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)


class ActivationBoundary(Connected):
    """Which neurons are active becomes as in the teacher; meant for a stage before the training on labels."""

    paper: ClassVar[Paper | None] = Paper(
        "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", "1811.03233"
    )
    equation: ClassVar[str] = (
        "sum over pairs i of 2^(i - last) sum over entries of max(0, margin - r(s))^2 where t > 0, "
        "max(0, margin + r(s))^2 elsewhere"
    )
    applies: ClassVar[str] = (
        "Networks with ReLUs; any task. Not with `accumulate` above 1: the connectors' batch norm wants all of a batch."
    )
    kind: Literal["activation-boundary"] = "activation-boundary"
    weight: Weight = 3e-3
    """Factor of this term in the objective: a number, or a ramp over a stage."""
    pairs: list[Pair] = Field(min_length=1, max_length=32)
    """Which features are compared, from the first to the last: each counts twice as much as the one before it."""
    margin: Positive = 1.0
    """How far from 0 the student's side has to be to cost nothing."""
    name: PartName = "activation-boundary"
    """Of the connectors: terms and stages with the same name share them where their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)


class Lipschitz(Connected):
    """LONDON: how much a network's stages can stretch their input becomes as in the teacher.

    Used beside `overhaul` on the same pairs, whose connectors it shares.
    """

    paper: ClassVar[Paper | None] = Paper("Lipschitz Continuity Guided Knowledge Distillation", "2108.12905")
    equation: ClassVar[str] = (
        "sum over consecutive pairs (i, i + 1) of 2^(i - last) (sigma(s) - sigma(t))^2, sigma the spectral norm of "
        "f_i f_(i+1)^T / positions"
    )
    applies: ClassVar[str] = (
        "Networks of maps; any task. Not with `accumulate` above 1: the connectors' batch norm wants the whole batch."
    )
    kind: Literal["lipschitz"] = "lipschitz"
    weight: Weight = 4e-3
    """Factor of this term in the objective: a number, or a ramp over a stage. The authors quarter it after 60 % of the
    epochs in one of their settings, and keep or double it in others."""
    pairs: list[Pair] = Field(min_length=2, max_length=32)
    """Ends of the stages, from the first to the last; what lies between two of them is compared."""
    iterations: int = Field(10, ge=1, le=100)
    """Steps of the power iteration, from a vector of ones; 5 on ImageNet."""
    name: PartName = "overhaul"
    """Of the connectors: terms and stages with the same name share them where their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)


class MiAlpha(FeatureTerm):
    """Distiller: a lower bound of the mutual information between both sides' features, made larger."""

    paper: ClassVar[Paper | None] = Paper(
        "Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing", "2109.11105"
    )
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "-(1 + mean_(i != j) (f_ii - I_ij) - mean_(i != j) exp(f_ij - I_ii)), f the critic's score of s_i and t_j, "
        "I_ij = log(alpha mean_(k != j) exp f_ik + (1 - alpha) exp b(t_i)), b a trained baseline"
    )
    applies: ClassVar[str] = "Any task; widths may differ. Wants batches of 8 and more; not with `accumulate` above 1."
    kind: Literal["mi-alpha"] = "mi-alpha"
    pair: Pair
    """Which features are compared."""
    reduction: Reduction = "first"
    """Of tokens the `first` one, or the `mean` of those that aren't padding; of maps the mean over their positions."""
    bound: Literal["mi-alpha", "infonce"] = "mi-alpha"
    """`infonce` is -mean_i log(exp f_ii / mean_j exp f_ij), without alpha and baseline."""
    alpha: Share = 0.9
    """Share of the other rows in the bound's denominator; the rest is the baseline's. The authors' code takes the
    logistic function of this number: theirs of 0.9 is 0.711 here."""
    hidden: int = Field(128, ge=1, le=65_536)
    """Width of the hidden layers of critic and baseline."""
    embedding: int = Field(64, ge=1, le=65_536)
    """Width that the critic brings both sides to before it multiplies them."""
    name: PartName = "mi-alpha"
    """Of critic and baseline: terms and stages with the same name share them where their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of([self.pair])


class Factors(FeatureTerm):
    """What the two sides of inheritance and exploration agree on."""

    paper: ClassVar[Paper | None] = IE_KD
    couples_rows: ClassVar[bool] = True
    p: Power = 1.0
    """Power of the differences; the mean's root of the same power is taken."""
    factors: int | None = Field(None, ge=1, le=65_536)
    """Channels of the code; none: half of the teacher's."""
    name: PartName = "autoencoder"
    """Of the autoencoder: `inheritance-exploration` uses the one that a stage before it has trained by this name."""


class FeatureAutoencoder(Factors):
    """An autoencoder of a teacher's feature for `inheritance-exploration`; meant for a stage that trains `terms`."""

    equation: ClassVar[str] = "(mean |t - decode(encode(t))|^p)^(1/p)"
    applies: ClassVar[str] = "Teachers with a map; any task. Not with `accumulate` above 1."
    kind: Literal["feature-autoencoder"] = "feature-autoencoder"
    tap: Tap
    """The teacher's feature."""

    def taps(self) -> Taps:
        return Taps(teacher=(self.tap,))


class InheritanceExploration(Factors):
    """IE-KD: one half of the student's channels becomes like the teacher's code, the other half unlike it.

    Needs a stage before it with a `feature-autoencoder` of the same name, at the teacher's place of `pair`.
    """

    equation: ClassVar[str] = (
        "inherit D(E_t(t), E_i(s_1)) - explore D(E_t(t), E_e(s_2)), D(a, b) = (mean |a/|a| - b/|b||^p)^(1/p); with "
        "cosines: inherit (1 - cos) + explore |cos|"
    )
    applies: ClassVar[str] = "Networks of maps; any task. Not with `accumulate` above 1."
    kind: Literal["inheritance-exploration"] = "inheritance-exploration"
    pair: Pair
    """Which features are compared; the student's needs two channels at least."""
    inherit: NonNegative = 1.0
    """Weight of the half that is to be like the teacher."""
    explore: NonNegative = 1.0
    """Weight of the half that is to be unlike it."""
    distance: Literal["norm", "cosine"] = "norm"
    """What tells codes apart; `p` belongs to the norm."""

    def taps(self) -> Taps:
        return taps_of([self.pair])

    @model_validator(mode="after")
    def _compares_something(self) -> Self:
        if self.inherit == self.explore == 0.0:
            raise ValueError("inherit and explore must not both be 0")
        return self
