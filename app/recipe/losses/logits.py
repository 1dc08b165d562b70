"""Terms on the logits of both sides, or of the student only."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Answer, NonNegative, Paper, Positive, Share
from app.recipe.losses.base import BY_ROW, LossSpec, Softened, Temperature

Skew = Annotated[float, Field(ge=0.0, lt=1.0)]
DISTILLM = Paper("DistiLLM: Towards Streamlined Distillation for Large Language Models", "2402.03898")
THREE_LEVELS = Paper("Understanding and Improving Knowledge Distillation", "2002.03532")


class CrossEntropy(LossSpec):
    """Cross-entropy with the labels."""

    needs_teacher: ClassVar[bool] = False
    equation: ClassVar[str] = "-sum_c t_c log q_c, t = (1 - label_smoothing) onehot(y) + label_smoothing / C"
    applies: ClassVar[str] = "Classification; labels may be probabilities."
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["cross-entropy"] = "cross-entropy"
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the target spread evenly over all classes."""


class Kd(Softened):
    """Forward Kullback-Leibler divergence of the softened distributions, times the squared temperature."""

    paper: ClassVar[Paper | None] = Paper("Distilling the Knowledge in a Neural Network", "1503.02531")
    equation: ClassVar[str] = "T^2 KL(p || q)"
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["kd"] = "kd"
    temperature: Temperature = 4.0
    """Divides both sides' logits. Above 1000 the divergence is lost in rounding: `logit-mse` is its limit."""


class Nkd(LossSpec):
    """Normalised KD: the target's term, plus cross-entropy over the renormalised non-target classes."""

    paper: ClassVar[Paper | None] = Paper(
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
        "Customized Soft Labels",
        "2303.13005",
    )
    equation: ClassVar[str] = "-p_y log q_y at T = 1, - gamma T^2 sum_(c != y) p'_c log q'_c, ' = over the classes != y"
    applies: ClassVar[str] = "Single-label classification with a teacher."
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["nkd"] = "nkd"
    gamma: float = Field(1.5, ge=0.0, le=1000.0)
    """Weight of the non-target part."""
    temperature: Temperature = 1.0
    """Divides the non-target logits of both sides."""


class LogitMse(LossSpec):
    """Logits matching: half the mean squared difference of the logits."""

    paper: ClassVar[Paper | None] = Paper(
        "Exploring the Connection between Knowledge Distillation and Logits Matching", "2109.06458"
    )
    equation: ClassVar[str] = "1 / (2 C) sum_c (z_c - v_c)^2, z and v the logits of student and teacher"
    applies: ClassVar[str] = "Classification, of several labels too, with a teacher of the same classes."
    answers: ClassVar[frozenset[Answer]] = BY_ROW | {"labels"}
    kind: Literal["logit-mse"] = "logit-mse"
    centered: bool = False
    """Subtracts each side's mean over the classes first: exactly the limit of `kd` at an infinite temperature. Without
    it, a difference of the means contributes too. Not for labels with a sigmoid each: there the mean depends on how
    many there are."""


class Dkd(Softened):
    """Decoupled KD: the target class against the rest, and the rest among themselves, each with its own weight."""

    paper: ClassVar[Paper | None] = Paper("Decoupled Knowledge Distillation", "2203.08679")
    equation: ClassVar[str] = (
        "T^2 (alpha KL([p_y, 1 - p_y] || [q_y, 1 - q_y]) + beta KL(p' || q')), ' = renormalised over the classes != y"
    )
    applies: ClassVar[str] = "Single-label classification with a teacher."
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["dkd"] = "dkd"
    temperature: Temperature = 4.0
    """Divides both sides' logits; the value is multiplied by its square."""
    alpha: NonNegative = 1.0
    """Weight of the target class against the rest."""
    beta: NonNegative = 8.0
    """Weight of the other classes among themselves; 2 to 8 on CIFAR-100, 0.5 on ImageNet."""


class Dist(LossSpec):
    """DIST: correlation of the predictions, of each row over the classes and of each class over the rows."""

    paper: ClassVar[Paper | None] = Paper("Knowledge Distillation from A Stronger Teacher", "2205.10536")
    couples_rows: ClassVar[bool] = True
    equation: ClassVar[str] = (
        "T^2 (beta (1 - mean over rows of pearson(p, q)) + gamma (1 - mean over classes of pearson over the batch))"
    )
    applies: ClassVar[str] = "Classification with a teacher; not with `accumulate` above 1."
    kind: Literal["dist"] = "dist"
    beta: NonNegative = 1.0
    """Weight of the relations between classes, within a row."""
    gamma: NonNegative = 1.0
    """Weight of the relations between rows, within a class."""
    temperature: Temperature = 1.0
    """Divides both sides' logits; the value is multiplied by its square. 1 to 4 for classification."""


class BdKd(Softened):
    """Balanced divergences: forward KL has more weight if the student is more certain than the teacher, else reverse.

    The teacher is constant in it; in the paper it learns too, as with the method `online`. Choosing the side by the
    entropies follows the paper; the weights themselves are ours.
    """

    paper: ClassVar[Paper | None] = Paper(
        "BD-KD: Balancing the Divergences for Online Knowledge Distillation", "2212.12965"
    )
    equation: ClassVar[str] = (
        "T^2 (delta KL(p || q) + KL(q || p)) where H(q) < H(p), else T^2 (KL(p || q) + delta KL(q || p))"
    )
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["bd-kd"] = "bd-kd"
    temperature: Temperature = 1.0
    """Divides both sides' logits; the value is multiplied by its square."""
    delta: Positive = 2.0
    """Weight of the favoured divergence; 1 makes the loss symmetric."""


class ReverseKl(Softened):
    """Reverse Kullback-Leibler divergence: mode-seeking, the student stays where the teacher's probability is high."""

    paper: ClassVar[Paper | None] = Paper("MiniLLM: Knowledge Distillation of Large Language Models", "2306.08543")
    equation: ClassVar[str] = "KL(q || p)"
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["reverse-kl"] = "reverse-kl"


class Jsd(Softened):
    """Generalised Jensen-Shannon divergence; forward KL at `beta` 0, reverse KL at 1."""

    paper: ClassVar[Paper | None] = Paper(
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", "2306.13649"
    )
    equation: ClassVar[str] = (
        "beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; KL(p || q) at beta 0, KL(q || p) at 1"
    )
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["jsd"] = "jsd"
    temperature: Temperature = 0.9
    """Divides both sides' logits; the value is not multiplied by its square."""
    beta: Share = 0.5
    """Share of the teacher in the mixture."""


class SkewKl(Softened):
    """Forward KL to a mixture of student and teacher, which bounds its gradient."""

    paper: ClassVar[Paper | None] = DISTILLM
    equation: ClassVar[str] = "KL(p || skew p + (1 - skew) q)"
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["skew-kl"] = "skew-kl"
    skew: Skew = 0.1
    """Share of the teacher in the mixture; 0 is forward KL."""


class SkewReverseKl(Softened):
    """Reverse KL to a mixture of teacher and student, which bounds its gradient."""

    paper: ClassVar[Paper | None] = DISTILLM
    equation: ClassVar[str] = "KL(q || (1 - skew) p + skew q)"
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["skew-reverse-kl"] = "skew-reverse-kl"
    skew: Skew = 0.1
    """Share of the student in the mixture; 0 is reverse KL."""


class Tvd(Softened):
    """Total variation distance."""

    paper: ClassVar[Paper | None] = Paper(
        "f-Divergence Minimization for Sequence-Level Knowledge Distillation", "2307.15190"
    )
    equation: ClassVar[str] = "1/2 sum_c |p_c - q_c|"
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["tvd"] = "tvd"


class Akl(Softened):
    """Adaptive KL: forward and reverse, weighted by the share of the gap in the head of the teacher's distribution."""

    paper: ClassVar[Paper | None] = Paper(
        "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models", "2404.02657"
    )
    equation: ClassVar[str] = (
        "h KL(p || q) + (1 - h) KL(q || p), h = share of sum_c |p_c - q_c| in the head: the likeliest classes, up to mu"
    )
    answers: ClassVar[frozenset[Answer]] = BY_ROW
    kind: Literal["akl"] = "akl"
    mu: Share = 0.5
    """Cumulative probability of the head; the most probable class is always in it."""
    boundary_in_head: bool = False
    """Counts the class that crosses `mu` into the head; the authors' code does not."""


class KdMse(Softened):
    """Mean squared difference of the softened probabilities, times the squared temperature."""

    paper: ClassVar[Paper | None] = Paper(
        "BERT Learns to Teach: Knowledge Distillation with Meta Learning", "2106.04570"
    )
    equation: ClassVar[str] = "T^2 / C sum_c (p_c - q_c)^2"
    kind: Literal["kd-mse"] = "kd-mse"
    temperature: Temperature = 5.0
    """Divides both sides' logits; the value is multiplied by its square."""


class KdPt(LossSpec):
    """Cross-entropy with only the teacher's confidence in the target (instance-level knowledge), the rest uniform."""

    paper: ClassVar[Paper | None] = THREE_LEVELS
    equation: ClassVar[str] = "-T^2 sum_c t_c log q_c, t_y = p_y, (1 - p_y) spread evenly over the others"
    applies: ClassVar[str] = "Single-label classification with a teacher."
    kind: Literal["kd-pt"] = "kd-pt"
    temperature: Temperature = 2.0
    """Divides both sides' logits; the value is multiplied by its square."""


class KdSim(LossSpec):
    """Cross-entropy with only the teacher's similarities of classes (domain-level knowledge), from its last layer."""

    paper: ClassVar[Paper | None] = THREE_LEVELS
    equation: ClassVar[str] = (
        "-sum_c t_c log q_c, t = softmax(cosine(w_c, w_y) / tau), w the rows of the teacher's last layer"
    )
    applies: ClassVar[str] = "Single-label classification with a teacher that ends in a linear layer."
    kind: Literal["kd-sim"] = "kd-sim"
    tau: Positive = 0.3
    """Divides the cosines; smaller values approach the label alone."""


class KdTopk(LossSpec):
    """Cross-entropy with the teacher's most probable classes; the remaining probability is spread evenly."""

    paper: ClassVar[Paper | None] = THREE_LEVELS
    equation: ClassVar[str] = "-T^2 sum_c t_c log q_c, t_c = p_c for the k likeliest classes, the rest spread evenly"
    kind: Literal["kd-topk"] = "kd-topk"
    temperature: Temperature = 2.0
    """Divides both sides' logits; the value is multiplied by its square."""
    k: int | None = Field(None, ge=1)
    """Classes kept; none: a twentieth of them, at least one."""


class KdRel(LossSpec):
    """Cross-entropy with hand-made relations of the classes: a hierarchy instead of a teacher."""

    needs_teacher: ClassVar[bool] = False
    paper: ClassVar[Paper | None] = THREE_LEVELS
    equation: ClassVar[str] = (
        "-sum_c t_c log q_c, t = siblings over the other classes of y's parent, others over the rest, what is left on y"
    )
    applies: ClassVar[str] = "Single-label classification with a hierarchy of the classes; needs no teacher."
    kind: Literal["kd-rel"] = "kd-rel"
    parents: list[int] = Field(min_length=2, max_length=1024)
    """Number of each class's parent, one per class; classes of one parent are siblings."""
    siblings: Share = 0.2
    """Probability shared by the siblings of the label; a class without siblings keeps it."""
    others: Share = 0.1
    """Probability shared by the classes that are neither."""

    @model_validator(mode="after")
    def _the_label_keeps_some(self) -> Self:
        if self.siblings + self.others > 1.0:
            raise ValueError("the sum of siblings and others must be at most 1")
        return self
