"""Universal self-KD (2303.13005): soft labels from the student's predictions and from a weak head inside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses import CrossEntropy
from app.recipe.losses.labels import Uskd
from worker.kernels.log_probs import FLOOR
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.cross_entropy import CrossEntropyTerm
from worker.losses.features.activations import describe, of_student, vectors, width_of
from worker.tensors import at_least_float32

EPS = 1e-6
"""Added to the mass outside the label, as in the authors' code."""
SMOOTHING = 0.1
"""Label smoothing of the weak head; fixed in the authors' code."""


class Named(NamedTuple):
    """The target classes of a label: one, or the two largest of a label of probabilities."""

    columns: Tensor
    """(B, K) int64."""
    values: Tensor
    """(B, K) floating, their shares in the label; 0 for a class that only fills the row."""

    def beside(self, scores: Tensor) -> Tensor:
        """`scores` (B, C), floating, divided by 1 minus the named classes' scores."""
        named = scores.gather(-1, self.columns).where(self.values > 0.0, 0.0)
        return scores / (1.0 - named.sum(-1, keepdim=True) + EPS)


class UskdParts(NamedTuple):
    """Parts of the loss, each (B,) floating and unweighted."""

    target: Tensor
    others: Tensor
    weak: Tensor


class UskdTerm:
    """alpha target + beta others + mu weak; the weak head has gradients from the last part alone.

    The mean over the rows couples them, but has no gradient. Masked columns (logits of -inf) are left out.
    """

    def __init__(self, spec: Uskd, builder: LossBuilder) -> None:
        self.spec = spec
        shape = builder.student(spec.feature)
        if len(shape) not in (2, 3, 4):
            raise builder.refuse(f"gives {describe(shape)}; accepted: vectors, tokens or maps", "feature")
        place = f"{spec.feature.path}:{spec.feature.at}:{spec.reduction}".replace(".", "/")
        self.head = builder.part(f"uskd:{place}", lambda: nn.Linear(width_of(shape), builder.outputs))
        self._weak_loss = CrossEntropyTerm(CrossEntropy(label_smoothing=SMOOTHING))

    def __call__(self, inputs: LossInputs) -> Tensor:
        parts, spec = self.parts(inputs), self.spec
        return spec.alpha * parts.target + spec.beta * parts.others + spec.mu * parts.weak

    def parts(self, inputs: LossInputs) -> UskdParts:
        """The three parts of each row, with gradients."""
        logits = at_least_float32(inputs.student)
        weak = self._weak_logits(inputs, logits)
        named = named_classes(inputs.labels, logits)
        order = self.order(logits.detach(), weak.detach(), named)
        return UskdParts(
            target_part(logits, named, inputs.valid),
            others_part(logits, named, order),
            self._weak_loss(LossInputs(weak, inputs.labels, None)),
        )

    def _weak_logits(self, inputs: LossInputs, logits: Tensor) -> Tensor:
        feature = of_student(inputs, self.spec.feature)
        pooled = vectors(feature, self.spec.reduction, inputs.features.student_tokens)
        weak: Tensor = self.head(pooled)
        return at_least_float32(weak).masked_fill(logits.isneginf(), -torch.inf)

    def order(self, logits: Tensor, weak: Tensor, named: Named) -> Tensor:
        """Zipf's law over all classes (B, C): 1 / rank, ranked by the sum of both heads' scores; from floating logits
        (B, C) of the student and its weak head."""
        strong = F.log_softmax(logits, dim=-1) if self.spec.rank_source == "log" else logits.softmax(-1)
        scores = named.beside(weak.softmax(-1)) + named.beside(strong)
        ranks = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return 1.0 / (ranks + 1).to(logits.dtype)


def target_part(logits: Tensor, named: Named, valid: Tensor | None) -> Tensor:
    """-sum_k t_k log q_k of the named classes (B,), where t_k = q_k^2 + value_k - mean over rows of q_k^2, a constant;
    from floating logits (B, C).

    The mean is over the `valid` rows (B,) bool that name a k-th class.
    """
    logs = F.log_softmax(logits, dim=-1).gather(-1, named.columns)
    present = named.values > 0.0
    counted = present if valid is None else present & valid.unsqueeze(-1)
    squared = logs.detach().exp().square()
    mean = squared.where(counted, 0.0).sum(0) / counted.sum(0).clamp(min=1)
    return -((squared + named.values - mean) * logs).where(present, 0.0).sum(-1)


def others_part(logits: Tensor, named: Named, order: Tensor) -> Tensor:
    """-sum_c r_c log q_c (B,) over the classes that are not named, r and q renormalised over them, from floating logits
    and `order` r (B, C)."""
    offered = ~logits.isneginf()
    others = offered.scatter(-1, named.columns, offered.gather(-1, named.columns) & (named.values <= 0.0))
    weights = order.where(others, 0.0)
    logs = F.log_softmax(logits.masked_fill(~others, FLOOR), dim=-1)
    return -(weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny) * logs).sum(-1)


def named_classes(labels: Tensor, like: Tensor) -> Named:
    """The classes that labels (B,) int64 or (B, C) probabilities name, with values in the dtype of `like`."""
    if not labels.is_floating_point():
        columns = labels.unsqueeze(-1)
        return Named(columns, torch.ones_like(columns, dtype=like.dtype))
    values, columns = labels.to(like.dtype).topk(2, dim=-1)
    return Named(columns, values)
