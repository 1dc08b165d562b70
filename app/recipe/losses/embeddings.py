"""The losses of sentence encoders, whose answer is a vector of a text.

Notation of the equations: s and t the vectors of student and teacher, r(s) the student's after its projection, cos the
cosine of two vectors; S_i and T_i the cosines of text i with the others, of both sides; a and b the texts of a pair.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Answer, Paper
from app.recipe.losses.base import LossSpec, Temperature
from app.recipe.losses.features import PartName

Score = Annotated[float, Field(allow_inf_nan=False)]


class EmbeddingTerm(LossSpec):
    """A term of nothing but vectors of texts."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"vectors"})


class EmbeddingDistance(EmbeddingTerm):
    """The student's vector of a text becomes the teacher's.

    A projection is learned beside the student and left out of the exported model, whose vectors keep the student's own
    width: compared with each other they are as good, but they can't be compared with the teacher's.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation", "2004.09813"
    )
    equation: ClassVar[str] = "mse: mean over the entries of (r(s) - t)^2; cosine: 1 - cos(r(s), t)"
    applies: ClassVar[str] = "Embeddings with a teacher, of single texts or of pairs."
    kind: Literal["embedding-distance"] = "embedding-distance"
    distance: Literal["mse", "cosine"] = "mse"
    """What is compared: vectors with their lengths, or their directions alone. Of vectors of length 1 in D dimensions
    `mse` is 2 / D times `cosine`."""
    projection: Literal["auto", "linear", "none"] = "auto"
    """Brings the student's vector to the teacher's width: a linear layer with a bias; `auto` has one where the widths
    differ, and `none` refuses that."""
    name: PartName = "embedding"
    """Of the projection: terms and stages with the same name share it."""


class SimilarityMatrix(EmbeddingTerm):
    """How alike the texts of a batch are to each other becomes as with the teacher; widths may differ.

    `mse` compares the cosines themselves, as Similarity-Preserving KD (1907.09682) does with products of rows.
    """

    paper: ClassVar[Paper | None] = Paper("SEED: Self-supervised Distillation For Visual Representation", "2101.04731")
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "kl: KL(softmax(T_i / teacher_temperature) || softmax(S_i / temperature)) over the other texts of the batch; "
        "mse: mean over the other texts j of (S_ij - T_ij)^2"
    )
    applies: ClassVar[str] = "Embeddings with a teacher, of single texts or of pairs; not with `accumulate` above 1."
    kind: Literal["similarity-matrix"] = "similarity-matrix"
    compare: Literal["kl", "mse"] = "kl"
    """Distributions over the other texts, or the cosines."""
    temperature: Temperature = 0.05
    """Divides the student's cosines; it belongs to `kl`."""
    teacher_temperature: Temperature | None = None
    """Divides the teacher's; none: the same. Lower than the student's makes the targets sharper: the paper has 0.01 and
    0.2."""


class PairTerm(EmbeddingTerm):
    """A term that needs pairs of texts."""

    needs_scores: ClassVar[bool] = False


class Contrastive(PairTerm):
    """InfoNCE within the batch: a text finds the one it is paired with among those of the other pairs.

    With `target: teacher` it is to find all of them as likely as the teacher does: labels that are soft where texts of
    other pairs fit, too. A text that is the same as the one looked for, or as the one that looks, is left out.
    `anchors: both` with `others: all` is NT-Xent (SimCLR, 2002.05709).
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
        "Embeddings of pairs, with the pairs as labels or with a teacher. Better with large batches; not with "
        "`accumulate` above 1."
    )
    kind: Literal["contrastive"] = "contrastive"
    target: Literal["pairs", "teacher"] = "pairs"
    """What the student is to find: its pair, or what the teacher finds."""
    temperature: Temperature = 0.05
    """Divides the student's cosines; 0.05 as in SimCSE (2104.08821)."""
    teacher_temperature: Temperature | None = None
    """Divides the teacher's; none: the same."""
    anchors: Literal["first", "both"] = "first"
    """Which texts of the pairs look for their others: the first ones, or both."""
    others: Literal["opposite", "all"] = "opposite"
    """What they look through: the texts on the other side of all pairs, or all texts but themselves."""

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]  # here it depends on a setting
        return self.target == "teacher"

    @model_validator(mode="after")
    def _names_a_teacher_only_to_learn_from_it(self) -> Self:
        if self.target == "pairs" and (self.teacher is not None or self.teacher_temperature is not None):
            raise ValueError("teacher and teacher_temperature belong to target: teacher")
        return self


class PairScore(PairTerm):
    """The cosine of a pair becomes its score, brought to 0 to 1."""

    needs_teacher: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", "1908.10084"
    )
    equation: ClassVar[str] = "(cos(a, b) - (score - lowest) / (highest - lowest))^2"
    applies: ClassVar[str] = "Embeddings of pairs with scores."
    kind: Literal["pair-score"] = "pair-score"
    lowest: Score = 0.0
    """Score of a pair whose texts have nothing in common."""
    highest: Score = 1.0
    """Score of a pair whose texts mean the same; 5 for the STS Benchmark."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError("highest must be above lowest")
        return self
