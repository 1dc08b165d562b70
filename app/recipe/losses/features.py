"""Loss terms on features of the networks. Each has one class of the same kind in `worker/losses/features`.

Notation of the equations: s and t the features of student and teacher, r(s) the student's after its adapter, B the
number of rows. A pair's features are vectors (B, D), tokens (B, S, D) or maps (B, C, H, W). If the two maps of a
pair differ in height or width, the larger one is averaged down to the smaller (adaptive average pooling).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from app.recipe.base import EVERY_ANSWER, Answer, NonNegative, Paper, Positive, Share, Spec
from app.recipe.losses.base import LossSpec
from app.recipe.losses.taps import PATH, Pair, Tap, Taps, taps_of
from app.recipe.losses.weights import Weight
from app.recipe.problem import Problem

PartName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""Name of the modules that a term trains; terms and stages with the same name for the same places share them."""
Power = Annotated[float, Field(ge=1.0, le=16.0)]
Reduction = Literal["first", "mean"]
"""How tokens are reduced to one vector: the first one (a class token), or the mean of those that aren't padding. Maps
are always averaged over their positions."""
NO_MAPS = "it compares maps, and networks that read texts have none"
IE_KD = Paper(
    "Revisiting Knowledge Distillation: An Inheritance and Exploration Framework",
    "2107.00181",
)


class FeatureTerm(LossSpec):
    """A term that compares features. It does not use the outputs and so fits every task except causal-lm, whose rows
    are tokens, unless `answers` includes them. Its rows are samples, also where a class of every token is asked for."""

    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER - {"tokens"}

    @classmethod
    def why_not_by_token(cls) -> str:
        return ""


class Hint(FeatureTerm):
    """FitNets: squared distance between the student's feature, after an adapter, and the teacher's.

    Of the tokens of texts all count but padding: those that no word begins with, and special ones, too.
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
    """Maps the student's width to the teacher's: `linear` for vectors and tokens, `conv1x1` for maps, `auto` the one
    of them that fits, or none if the widths are equal."""
    reduction: Literal["none", "first", "mean"] = "none"
    """Reduces each side to one vector first, so that features of different kinds can be compared: for tokens the
    `first` one, or the `mean` of those that aren't padding; for maps the mean over their positions."""
    name: PartName = "hint"
    """Name of the adapters: terms and stages with the same name share them if their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)


class Rkd(FeatureTerm):
    """Relational KD: distances between the samples of a batch, and angles between any three of them.

    If two rows are equal in the student but not in the teacher, the angles' gradient is of the order of 1e10, as in
    the authors' code: clip it if that can occur.
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
    """Features used as embeddings; none: the outputs of both sides."""
    reduction: Reduction = "first"
    """For tokens the `first` one, or the `mean` of those that aren't padding; for maps the mean over all positions."""
    distance: NonNegative = 25.0
    """Weight of the distances; 1 in metric learning."""
    angle: NonNegative = 50.0
    """Weight of the angles; 2 in metric learning."""
    delta: Positive = 1.0
    """Difference at which the Huber loss changes from quadratic to linear."""

    def taps(self) -> Taps:
        return taps_of([self.pair] if self.pair else [])

    def by_token_problems(self, path: str) -> Iterator[Problem]:
        if self.pair is None:
            found = f"is missing, and the outputs are those of tokens, while {self.kind} compares samples"
            yield Problem(f"{path}.pair", found, "features, of which each text gives one vector (reduction)")

    @model_validator(mode="after")
    def _compares_something(self) -> Self:
        if self.distance == self.angle == 0.0:
            raise ValueError("distance and angle must not both be 0")
        return self


class Pkd(FeatureTerm):
    """Patient KD: squared distance between the vectors of inner layers, each divided by its length.

    The paper sums over the entries and the layers; the mean is that of its authors' code, for which the weight is.
    """

    paper: ClassVar[Paper | None] = Paper("Patient Knowledge Distillation for BERT Model Compression", "1908.09355")
    equation: ClassVar[str] = "mean over pairs and over a row's entries of (s / |s| - t / |t|)^2"
    applies: ClassVar[str] = "Any task; networks of one width, such as an encoder and a copy with fewer layers."
    kind: Literal["pkd"] = "pkd"
    weight: Weight = 100.0
    """Factor of this term in the objective: a number, or a ramp over a stage. The authors try 10 to 1000."""
    pairs: list[Pair] = Field(min_length=1, max_length=32)
    """Which features are compared; the paper leaves the last layer out."""
    reduction: Reduction = "first"
    """For tokens the `first` one, or the `mean` of those that aren't padding; for maps the mean over all positions."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)


class Projections(Spec):
    """Outputs of a self-attention layer's queries, keys and values, (B, S, D) each."""

    queries: Tap | None = None
    """Output of the queries' projection."""
    keys: Tap | None = None
    """Output of the keys' projection."""
    values: Tap | None = None
    """Output of the values' projection."""
    qkv: Tap | None = None
    """One projection (B, S, 3 D) with all three concatenated, in this order, instead of three."""

    @model_validator(mode="after")
    def _all_three(self) -> Self:
        three = [tap for tap in (self.queries, self.keys, self.values) if tap is not None]
        if len(three) != (0 if self.qkv else 3):
            raise ValueError("must have queries, keys and values, or only qkv")
        return self

    def taps(self) -> tuple[Tap, ...]:
        """The one or three places."""
        return tuple(tap for tap in (self.queries, self.keys, self.values, self.qkv) if tap is not None)


class AttentionPair(Spec):
    """A self-attention layer of the teacher, and the one of the student that is trained to match it."""

    teacher: Projections
    """The teacher's projections."""
    student: Projections
    """The student's projections."""


class AttentionRelation(FeatureTerm):
    """Divergence of the relations between tokens within queries, keys and values of one layer, usually the last."""

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
    """Parts that each side's width is split into; a remainder at the end is dropped."""
    relation: Literal["kl", "mse"] = "kl"
    """`kl` compares distributions over the tokens that aren't padding, as a mean over all such tokens of the batch;
    `mse` compares the scores themselves including padding, as the authors' code does."""

    def taps(self) -> Taps:
        return Taps(self.layer.student.taps(), self.layer.teacher.taps())

    def by_token_problems(self, path: str) -> Iterator[Problem]:
        if self.relation == "mse":
            found = "is mse, whose mean counts padding"
            yield Problem(f"{path}.relation", found, "kl, which leaves padding out")


class Connected(FeatureTerm):
    """A term on features before their activation, after the connectors of 1904.01866."""

    couples_rows: ClassVar[bool] = True
    adapter: Literal["connector", "none"] = "connector"
    """`connector`: a 1x1 convolution (a linear layer for vectors and tokens) and batch norm, as in the authors' code;
    `none` compares the features directly."""

    @classmethod
    def why_not_by_token(cls) -> str:
        return "its sums and the batch norm of its connectors count padding"


class MarginPair(Pair):
    """A pair of places before a ReLU; in the teacher, directly after a batch norm."""

    batch_norm: str | None = Field(None, max_length=512, pattern=PATH)
    """The teacher's batch norm from which the margins are computed; none: the module at the teacher's tap."""


class Overhaul(Connected):
    """Overhaul of feature distillation: entries negative in the teacher need only be negative in the student."""

    paper: ClassVar[Paper | None] = Paper("A Comprehensive Overhaul of Feature Distillation", "1904.01866")
    equation: ClassVar[str] = (
        "sum over pairs i of 2^(i - last) |r(s) - t'|^2 over the entries with r(s) > t' or t' > 0, t' = max(t, margin)"
    )
    applies: ClassVar[str] = (
        "Networks with batch norm before their ReLUs; any task. Not with `accumulate` above 1: the connectors' batch "
        "norm needs the whole batch."
    )
    kind: Literal["overhaul"] = "overhaul"
    weight: Weight = 1e-3
    """Factor of this term in the objective: a number, or a ramp over a stage. 1e-3 for small images, 1e-4 on ImageNet,
    1e-5 for segmentation."""
    pairs: list[MarginPair] = Field(min_length=1, max_length=32)
    """Which features are compared, from the first to the last: each counts twice as much as the one before it."""
    name: PartName = "overhaul"
    """Name of the connectors: terms and stages with the same name share them if their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)


class ActivationBoundary(Connected):
    """Hinge loss that matches which neurons are active to the teacher; for a stage before the training on labels."""

    paper: ClassVar[Paper | None] = Paper(
        "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", "1811.03233"
    )
    equation: ClassVar[str] = (
        "sum over pairs i of 2^(i - last) sum over entries of max(0, margin - r(s))^2 where t > 0, "
        "max(0, margin + r(s))^2 elsewhere"
    )
    applies: ClassVar[str] = (
        "Networks with ReLUs; any task. Not with `accumulate` above 1: the connectors' batch norm needs a whole batch."
    )
    kind: Literal["activation-boundary"] = "activation-boundary"
    weight: Weight = 3e-3
    """Factor of this term in the objective: a number, or a ramp over a stage."""
    pairs: list[Pair] = Field(min_length=1, max_length=32)
    """Which features are compared, from the first to the last: each counts twice as much as the one before it."""
    margin: Positive = 1.0
    """Distance from 0 beyond which the student's feature has no loss."""
    name: PartName = "activation-boundary"
    """Name of the connectors: terms and stages with the same name share them if their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of(self.pairs)


class Lipschitz(Connected):
    """LONDON: matches the Lipschitz constants of a network's stages to the teacher's.

    Used beside `overhaul` on the same pairs, whose connectors it shares.
    """

    paper: ClassVar[Paper | None] = Paper("Lipschitz Continuity Guided Knowledge Distillation", "2108.12905")
    equation: ClassVar[str] = (
        "sum over consecutive pairs (i, i + 1) of 2^(i - last) (sigma(s) - sigma(t))^2, sigma the spectral norm of "
        "f_i f_(i+1)^T / positions"
    )
    applies: ClassVar[str] = (
        "Networks of maps; any task. Not with `accumulate` above 1: the connectors' batch norm needs the whole batch."
    )
    kind: Literal["lipschitz"] = "lipschitz"
    weight: Weight = 4e-3
    """Factor of this term in the objective: a number, or a ramp over a stage. The authors quarter it after 60 % of the
    epochs in one of their settings, and keep or double it in others."""
    pairs: list[Pair] = Field(min_length=2, max_length=32)
    """Ends of the stages, from the first to the last; the modules between two of them are compared."""
    iterations: int = Field(10, ge=1, le=100)
    """Steps of the power iteration, from a vector of ones; 5 on ImageNet."""
    name: PartName = "overhaul"
    """Name of the connectors: terms and stages with the same name share them if their pairs are the same."""

    @classmethod
    def why_not_by_token(cls) -> str:
        return NO_MAPS

    def taps(self) -> Taps:
        return taps_of(self.pairs)


class MiAlpha(FeatureTerm):
    """Distiller: maximises a lower bound of the mutual information between both sides' features."""

    paper: ClassVar[Paper | None] = Paper(
        "Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing", "2109.11105"
    )
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "-(1 + mean_(i != j) (f_ii - I_ij) - mean_(i != j) exp(f_ij - I_ii)), f the critic's score of s_i and t_j, "
        "I_ij = log(alpha mean_(k != j) exp f_ik + (1 - alpha) exp b(t_i)), b a trained baseline"
    )
    applies: ClassVar[str] = "Any task; widths may differ. Needs batches of 8 or more; not with `accumulate` above 1."
    kind: Literal["mi-alpha"] = "mi-alpha"
    pair: Pair
    """Which features are compared."""
    reduction: Reduction = "first"
    """For tokens the `first` one, or the `mean` of those that aren't padding; for maps the mean over all positions."""
    bound: Literal["mi-alpha", "infonce"] = "mi-alpha"
    """`infonce` is -mean_i log(exp f_ii / mean_j exp f_ij), without alpha and baseline."""
    alpha: Share = 0.9
    """Share of the other rows in the bound's denominator; the rest is the baseline's. The authors' code applies the
    logistic function to this number: 0.9 there is 0.711 here."""
    hidden: int = Field(128, ge=1, le=65_536)
    """Width of the hidden layers of critic and baseline."""
    embedding: int = Field(64, ge=1, le=65_536)
    """Width to which the critic projects both sides before it multiplies them."""
    name: PartName = "mi-alpha"
    """Name of critic and baseline: terms and stages with the same name share them if their pairs are the same."""

    def taps(self) -> Taps:
        return taps_of([self.pair])


class Factors(FeatureTerm):
    """Fields that `feature-autoencoder` and `inheritance-exploration` share."""

    paper: ClassVar[Paper | None] = IE_KD
    couples_rows: ClassVar[bool] = True
    p: Power = 1.0
    """Power of the differences; the mean's root of the same power is taken."""
    factors: int | None = Field(None, ge=1, le=65_536)
    """Channels of the code; none: half of the teacher's."""
    name: PartName = "autoencoder"
    """Name of the autoencoder: `inheritance-exploration` uses the one that an earlier stage trained under this name."""

    @classmethod
    def why_not_by_token(cls) -> str:
        return NO_MAPS


class FeatureAutoencoder(Factors):
    """An autoencoder of a teacher's feature for `inheritance-exploration`; for a stage that trains `terms`."""

    equation: ClassVar[str] = "(mean |t - decode(encode(t))|^p)^(1/p)"
    applies: ClassVar[str] = "Teachers with a map; any task. Not with `accumulate` above 1."
    kind: Literal["feature-autoencoder"] = "feature-autoencoder"
    tap: Tap
    """The teacher's feature."""

    def taps(self) -> Taps:
        return Taps(teacher=(self.tap,))


class InheritanceExploration(Factors):
    """IE-KD: one half of the student's channels is pulled towards the teacher's code, the other half pushed away.

    Needs an earlier stage with a `feature-autoencoder` of the same name, at the teacher's place of `pair`.
    """

    equation: ClassVar[str] = (
        "inherit D(E_t(t), E_i(s_1)) - explore D(E_t(t), E_e(s_2)), D(a, b) = (mean |a/|a| - b/|b||^p)^(1/p); with "
        "cosines: inherit (1 - cos) + explore |cos|"
    )
    applies: ClassVar[str] = "Networks of maps; any task. Not with `accumulate` above 1."
    kind: Literal["inheritance-exploration"] = "inheritance-exploration"
    pair: Pair
    """Which features are compared; the student's needs at least two channels."""
    inherit: NonNegative = 1.0
    """Weight of the half that is pulled towards the teacher."""
    explore: NonNegative = 1.0
    """Weight of the half that is pushed away from it."""
    distance: Literal["norm", "cosine"] = "norm"
    """Distance between codes; `p` applies to the norm."""

    def taps(self) -> Taps:
        return taps_of([self.pair])

    @model_validator(mode="after")
    def _compares_something(self) -> Self:
        if self.inherit == self.explore == 0.0:
            raise ValueError("inherit and explore must not both be 0")
        return self
