"""Cross-entropy with targets from a teacher's confidence, its similarity of classes, or a hierarchy (2002.03532).

The targets follow the literature's description of the paper, for which there is no code by its authors. Masked columns
get none of the mass that is spread.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import KdPt, KdRel, KdSim, KdTopk
from worker.losses.base import LossInputs, target_column
from worker.losses.soft_labels import evenly, recover
from worker.losses.softened import prepare
from worker.tensors import at_least_float32


class KdPtTerm:
    """T^2 H(t, q): t has the teacher's probability of the target, and the rest spread evenly over the other classes."""

    def __init__(self, spec: KdPt) -> None:
        self.temperature = spec.temperature

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = prepare(inputs, standardized=False)
        target = keep(target_column(inputs.labels), teacher / self.temperature)
        return self.temperature**2 * cross_entropy(target, student / self.temperature)


class KdTopkTerm:
    """T^2 H(t, q): t has the teacher's k largest probabilities, and the rest spread evenly over the other classes."""

    def __init__(self, spec: KdTopk) -> None:
        self.temperature, self.k = spec.temperature, spec.k

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = prepare(inputs, standardized=False)
        classes = teacher.shape[-1]
        kept = teacher.topk(min(self.k or max(1, classes // 20), classes), dim=-1).indices
        return self.temperature**2 * cross_entropy(keep(kept, teacher / self.temperature), student / self.temperature)


class KdSimTerm:
    """H(t, q): t is a softmax over the cosines between the label's row of the teacher's last layer and all rows."""

    def __init__(self, spec: KdSim) -> None:
        self.tau = spec.tau

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.head is None:
            raise ValueError("this term needs a teacher that ends in a linear layer")
        logits = at_least_float32(inputs.student)
        directions = F.normalize(at_least_float32(inputs.head).detach(), dim=-1)
        cosines = directions[target_column(inputs.labels).squeeze(-1)] @ directions.T
        similarity = (cosines / self.tau).masked_fill(logits.isneginf(), -torch.inf)
        return cross_entropy(torch.softmax(similarity, dim=-1), logits)


class KdRelTerm:
    """H(t, q): t has given masses on the label, on its siblings in a hierarchy, and on the other classes.

    If there are no siblings or no other classes, their mass stays on the label.
    """

    def __init__(self, spec: KdRel) -> None:
        self.siblings, self.others = spec.siblings, spec.others
        self.parents = torch.tensor(spec.parents)

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits, column = at_least_float32(inputs.student), target_column(inputs.labels)
        self.parents = self.parents.to(logits.device)
        others = (~logits.isneginf()).scatter(-1, column, False)
        alike = self.parents == self.parents[column]
        target = evenly(self.siblings, others & alike, logits) + evenly(self.others, others & ~alike, logits)
        return cross_entropy(target.scatter(-1, column, 1.0 - target.sum(-1, keepdim=True)), logits)


def keep(columns: Tensor, logits: Tensor) -> Tensor:
    """softmax(`logits`), floating (B, C), in the `columns` (B, K) int64; the rest is spread evenly over the other
    columns."""
    p = torch.softmax(logits, dim=-1)
    left = p.scatter(-1, columns, 0.0).sum(-1, keepdim=True)
    return recover(columns, p.gather(-1, columns), ~logits.isneginf(), left)


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """-sum_c target_c log softmax(logits)_c of each row (B,) of floating (B, C), without masked columns."""
    logs = F.log_softmax(logits, dim=-1).masked_fill(logits.isneginf(), 0.0)
    return -(target * logs).sum(-1)
