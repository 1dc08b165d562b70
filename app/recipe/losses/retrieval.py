"""Losses of queries with candidates, whose texts' vectors are compared by cosine.

Notation of the equations: c the cosines of a query with its candidates, of which the first positive is candidate 0; t
those of the teacher; j the scores of the candidates; P and N all pairs of a query with a positive and with a negative.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Answer, Paper
from app.recipe.losses.base import Temperature
from app.recipe.losses.embeddings import PairTerm

ScoreSource = Literal["scores", "teacher"]
COSINE_TEMPERATURE = 0.05
"""Divisor of the cosines of `dexml`, unless the job has another."""


class Mw(PairTerm):
    """Mann-Whitney loss: every positive is to score higher than every negative, also of other queries.

    Bounds the area above the ROC curve: 1 - AUC <= loss / log 2, so that one threshold separates all queries'
    positives. Negatives are the candidates of all queries; one that is identical to the query or to one of its
    positives is masked out. Memory grows with the queries times the texts of the batch, and not with the pairs that
    are compared.
    """

    needs_teacher: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        "Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval", "2510.00137"
    )
    equation: ClassVar[str] = "mean over p in P and n in N of softplus(-(c_p - c_n) / temperature)"
    applies: ClassVar[str] = (
        "Embeddings of pairs or of queries with candidates, without a teacher. Compares the positives of all queries "
        "with the negatives of all; not with `accumulate` above 1, nor with several processes."
    )
    kind: Literal["mw"] = "mw"
    temperature: Temperature = 0.05
    """Divides the differences of cosines."""
    per_query: bool = False
    """Compares positives with the negatives of the same query alone, with the mean over the queries."""


class UniMe(PairTerm):
    """Soft labels of a judge: the student's distribution over a query's candidates becomes that of the scores, by
    symmetric divergence (UniME-V2)."""

    needs_lists: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        "UniME-V2: MLLM-as-a-Judge for Universal Multimodal Embedding Learning", "2510.13515"
    )
    equation: ClassVar[str] = (
        "P = softmax(j / judge_temperature), Q = softmax(c / temperature): "
        "(sum of P (log P - log(Q + 1e-8)) + sum of Q (log Q - log(P + 1e-8))) / 2"
    )
    applies: ClassVar[str] = (
        "Embeddings of queries with candidates and their scores, or with a teacher. A query is compared with its own "
        "candidates alone, so that batches may be split."
    )
    kind: Literal["unime"] = "unime"
    target: ScoreSource = "scores"
    """Scores of the candidates: those of the data, or the teacher's cosines."""
    temperature: Temperature = 0.02
    """Divides the student's cosines."""
    judge_temperature: Temperature | None = None
    """Divides the scores; none: the same. Scores between 0 and 1 divided by 0.02 are nearly one-hot."""

    @model_validator(mode="after")
    def _names_a_teacher_only_to_learn_from_it(self) -> Self:
        if self.target == "scores" and self.teacher is not None:
            raise ValueError("teacher is only allowed with target: teacher")
        return self

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]  # here it depends on a setting
        return self.target == "teacher"

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]  # as above
        return self.target == "scores"


class LgAnna(PairTerm):
    """Relevance as soft labels beside contrastive learning, over the candidates that are no false negatives by the
    teacher's cosines (LG-ANNA; the equations are reconstructed from its report).

    A negative is kept if the teacher finds it less similar than the first positive by the margin. Further positives are
    in the soft part alone. A query without a kept negative has the loss 0.
    """

    needs_lists: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper("LG-ANNA-Embedding technical report", "2506.07438")
    equation: ClassVar[str] = (
        "-log softmax(c / temperature)_0 + "
        "soft_weight KL(softmax(j / relevance_temperature) || softmax(c / temperature)) "
        "over the kept candidates: t_n <= t_0 - margin, or t_n <= ratio t_0"
    )
    applies: ClassVar[str] = (
        "Embeddings of queries with candidates, with a teacher, and scores as relevance. A query is compared with its "
        "own candidates alone, so that batches may be split."
    )
    kind: Literal["lg-anna"] = "lg-anna"
    relevance: ScoreSource = "scores"
    """Relevance of the candidates: the scores of the data, or the teacher's cosines."""
    temperature: Temperature = 0.05
    """Divides the student's cosines."""
    relevance_temperature: Temperature = 0.1
    """Divides the relevance."""
    keep: Literal["margin", "ratio"] = "margin"
    """Rule for negatives: below the positive's cosine by `margin`, or below `ratio` of it."""
    margin: Annotated[float, Field(ge=0.0, le=1e6)] = 0.05
    """Least difference of the teacher's cosines; for `keep: margin`."""
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Largest ratio of the teacher's cosines; for `keep: ratio`."""
    soft_weight: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    """Weight of the soft labels' part."""

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]  # here it depends on a setting
        return self.relevance == "scores"

    @model_validator(mode="after")
    def _has_the_field_of_its_rule(self) -> Self:
        other = "ratio" if self.keep == "margin" else "margin"
        if getattr(self, other) != type(self).model_fields[other].default:  # a stored document has all fields
            raise ValueError(f"{other} is only allowed with keep: {other}")
        return self


class Dexml(PairTerm):
    """A text chooses among many labels, of which several may be right (DEXML): among the texts of the batch, for
    queries with lists of positives, or among the classes of a multi-label task.

    The labels of a query are the candidates of all queries, equal texts once, without the query's own text. Memory does
    not grow with the queries times the labels. In `multi-label-classification` s are the logits of all classes, of any
    student; that of the paper is a `dual-encoder`. A class with a target above 0 is a positive. Scores of `softmax` and
    `decoupled` rank the labels of a sample, but have no threshold: `bce` makes logits above 0 decisions.
    """

    answers: ClassVar[frozenset[Answer]] = frozenset({"vectors", "labels"})
    needs_teacher: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper("Dual-Encoders for Extreme Multi-Label Classification", "2310.10636")
    equation: ClassVar[str] = (
        "with s = c / temperature, over the positives p: softmax: sum of lse(s) - s_p; decoupled: mean of "
        "log(e^s_p + sum over negatives n of e^s_n) - s_p; bce: mean over all labels of softplus(s) - [positive] s; "
        "top-k: mean of -log sigmoid(alpha (s_p + t)), with t so that the sigmoids of all labels add up to k"
    )
    applies: ClassVar[str] = (
        "Embeddings of pairs or of queries with candidates, without a teacher: better with large batches; not with "
        "`accumulate` above 1, nor with several processes. Multi-label classification: without these limits."
    )
    kind: Literal["dexml"] = "dexml"
    criterion: Literal["softmax", "decoupled", "bce", "top-k"] = "decoupled"
    """Form of the loss: decoupled softmax, in which positives do not compete with each other; softmax over all labels,
    summed over the positives; one sigmoid for each label; or the positives' membership of the `k` largest scores."""
    temperature: Temperature | None = None
    """Divides the cosines of texts; none: by 0.05. Logits are not divided (a `dual-encoder` has its own temperature),
    and there it must be none."""
    k: Annotated[int, Field(ge=1, le=100_000)] = 5
    """Number of largest scores, for `top-k`; at most one less than the labels."""
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] = 2.0
    """Steepness of the sigmoids, for `top-k`."""
    weighted: bool = False
    """Multiplies the term of each positive by its score, or by its target, which may be a probability."""
    left_out: Literal["exclude", "constant"] = "exclude"
    """Labels that do not count are excluded, or have the score -100 as in the authors' code, which counts where scores
    are as low."""

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]  # here it depends on a setting
        return self.weighted

    @classmethod
    def couples(cls, answer: Answer) -> bool:
        return answer == "vectors"
