"""Losses of embedding models, whose output is a vector of a text or an image.

Notation of the equations: s and t the vectors of student and teacher, r(s) the student's after its projection, cos the
cosine of two vectors; S_i and T_i the cosines of sample i with the others, of both sides; a and b the texts of a pair.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Answer, InputKind, Paper
from app.recipe.losses.base import LossSpec, Temperature
from app.recipe.losses.features import PartName

Score = Annotated[float, Field(allow_inf_nan=False)]


class EmbeddingTerm(LossSpec):
    """A term that depends only on vectors of samples."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"vectors"})


class EmbeddingDistance(EmbeddingTerm):
    """Distance between the student's and the teacher's vector of a sample.

    A projection is trained beside the student and is not exported; the exported vectors keep the student's own
    width: they are comparable with each other, but not with the teacher's.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation", "2004.09813"
    )
    equation: ClassVar[str] = "mse: mean over the entries of (r(s) - t)^2; cosine: 1 - cos(r(s), t)"
    applies: ClassVar[str] = "Embeddings with a teacher, of images, single texts or pairs."
    kind: Literal["embedding-distance"] = "embedding-distance"
    distance: Literal["mse", "cosine"] = "mse"
    """Compares the vectors with their lengths (`mse`), or only their directions (`cosine`). For vectors of length 1 in
    D dimensions `mse` is 2 / D times `cosine`."""
    projection: Literal["auto", "linear", "none"] = "auto"
    """Maps the student's vector to the teacher's width by a linear layer with a bias; `auto` adds one if the widths
    differ, and `none` rejects different widths."""
    name: PartName = "embedding"
    """Name of the projection: terms and stages with the same name share it."""


class SimilarityMatrix(EmbeddingTerm):
    """Matches the student's similarities between the samples of a batch to the teacher's; widths may differ.

    `mse` compares the cosines themselves, as Similarity-Preserving KD (1907.09682) does with products of rows.
    """

    paper: ClassVar[Paper | None] = Paper("SEED: Self-supervised Distillation For Visual Representation", "2101.04731")
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "kl: KL(softmax(T_i / teacher_temperature) || softmax(S_i / temperature)) over the other samples of the batch; "
        "mse: mean over the other samples j of (S_ij - T_ij)^2"
    )
    applies: ClassVar[str] = (
        "Embeddings with a teacher, of images, single texts or pairs; not with `accumulate` above 1."
    )
    kind: Literal["similarity-matrix"] = "similarity-matrix"
    compare: Literal["kl", "mse"] = "kl"
    """Compares distributions over the other samples, or the cosines."""
    temperature: Temperature = 0.05
    """Divides the student's cosines; only for `kl`."""
    teacher_temperature: Temperature | None = None
    """Divides the teacher's; none: the same. Lower than the student's makes the targets sharper: the paper has 0.01 and
    0.2."""


class PairTerm(EmbeddingTerm):
    """A term that needs pairs, of texts unless it reads others."""

    reads: ClassVar[tuple[InputKind, ...]] = ("texts",)
    needs_scores: ClassVar[bool] = False
    needs_lists: ClassVar[bool] = False
    """Whether it is for queries with candidates, and not for pairs."""


class Contrastive(PairTerm):
    """InfoNCE within the batch: classifies the text that a text is paired with among those of the other pairs.

    Of a query with candidates the first positive is to be found among the candidates of all queries, negatives
    included, without its further positives. With `target: teacher` the labels are the teacher's distribution over
    them: soft where texts of other pairs match too. A candidate that is identical to a positive, or to the anchor, is
    masked out. `anchors: both` with `others: all` is NT-Xent (SimCLR, 2002.05709).
    """

    paper: ClassVar[Paper | None] = Paper(
        "Efficient Natural Language Response Suggestion for Smart Reply", "1705.00652"
    )
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "-log softmax(cos(a_i, .) / temperature) at b_i over the b of the batch; with the teacher as target "
        "KL(softmax(T_i / teacher_temperature) || softmax(S_i / temperature)) over the same texts"
    )
    applies: ClassVar[str] = (
        "Embeddings of pairs or of queries with candidates, with these as labels or with a teacher. Better with large "
        "batches; not with `accumulate` above 1."
    )
    kind: Literal["contrastive"] = "contrastive"
    target: Literal["pairs", "teacher"] = "pairs"
    """Labels: the index of the paired text, or the teacher's distribution."""
    temperature: Temperature = 0.05
    """Divides the student's cosines; 0.05 as in SimCSE (2104.08821)."""
    teacher_temperature: Temperature | None = None
    """Divides the teacher's; none: the same."""
    anchors: Literal["first", "both"] = "first"
    """Anchors: the first texts of the pairs, or both."""
    others: Literal["opposite", "all"] = "opposite"
    """Candidates: the texts on the other side of all pairs, or all texts but the anchor."""

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]  # here it depends on a setting
        return self.target == "teacher"

    @model_validator(mode="after")
    def _names_a_teacher_only_to_learn_from_it(self) -> Self:
        if self.target == "pairs" and (self.teacher is not None or self.teacher_temperature is not None):
            raise ValueError("teacher and teacher_temperature are only allowed with target: teacher")
        return self


class PairScore(PairTerm):
    """Squared difference between the cosine of a pair and its score, scaled to 0 to 1.

    The score of a pair of images is 1 if they are of one class, and else 0.
    """

    reads: ClassVar[tuple[InputKind, ...]] = ("texts", "images")
    needs_teacher: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", "1908.10084"
    )
    equation: ClassVar[str] = "(cos(a, b) - (score - lowest) / (highest - lowest))^2"
    applies: ClassVar[str] = "Embeddings of pairs of texts with scores, and of pairs of images."
    kind: Literal["pair-score"] = "pair-score"
    lowest: Score = 0.0
    """Score of a pair of unrelated texts."""
    highest: Score = 1.0
    """Score of a pair of texts with the same meaning; 5 for the STS Benchmark."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError("highest must be above lowest")
        return self
