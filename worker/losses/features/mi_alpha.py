"""Distiller (2109.11105): mutual information between student's and teacher's features, by a trained critic."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from app.recipe.losses.features import MiAlpha
from worker.kernels.log_probs import FLOOR
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.activations import both_vectors, width_of
from worker.losses.features.adapters import part_key, require_kind

LARGEST = 0.7
"""Share of the dtype's range of exponents that scores may use: 62 in float32. Beyond it they have no gradient."""


class Critic(nn.Module):
    """Scores of every student feature with every teacher feature, and a baseline for every teacher feature."""

    def __init__(self, student: int, teacher: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.student = _perceptron(student, hidden, embedding)
        self.teacher = _perceptron(teacher, hidden, embedding)
        self.baseline = _perceptron(teacher, hidden, 1)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, B), one row for each student vector, and baselines (B,), from floating vectors (B, D) each."""
        baseline: Tensor = self.baseline(teacher)
        return self.student(student) @ self.teacher(teacher).mT, baseline.squeeze(-1)


class MiAlphaTerm:
    """Negative lower bound; each row has the share that its scores contribute. 0 for a single row."""

    def __init__(self, spec: MiAlpha, builder: LossBuilder) -> None:
        self.spec = spec
        self.logs: tuple[Tensor | float, Tensor | float] = (_log(spec.alpha), _log(1.0 - spec.alpha))
        student, teacher = builder.student(spec.pair.student), builder.teacher(spec.pair.teacher, spec.teacher)
        require_kind(builder, student, (2, 3, 4), "pair.student")
        require_kind(builder, teacher, (2, 3, 4), "pair.teacher")
        taps = [spec.pair.student, spec.pair.teacher]
        self.critic = builder.part(
            part_key(spec.name, f"critic-{spec.hidden}-{spec.embedding}", taps, spec.teacher),
            lambda: Critic(width_of(student), width_of(teacher), spec.hidden, spec.embedding),
        )

    def __call__(self, inputs: LossInputs) -> Tensor:
        scores, baseline = self.critic(*both_vectors(inputs, self.spec.pair, self.spec.reduction))
        valid = (
            torch.ones(len(scores), dtype=torch.bool, device=scores.device) if inputs.valid is None else inputs.valid
        )
        if self.spec.bound == "infonce":
            return infonce(scores, valid)
        return mi_alpha(scores, baseline, self.logs, valid)


def infonce(scores: Tensor, valid: Tensor) -> Tensor:
    """InfoNCE loss of each row (B,), from floating scores (B, B); `valid` (B,) bool."""
    masked = scores.masked_fill(~valid, FLOOR)
    return masked.logsumexp(-1) - masked.diagonal() - valid.sum().clamp(min=1).to(scores.dtype).log()


def mi_alpha(scores: Tensor, baseline: Tensor, logs: tuple[Tensor | float, Tensor | float], valid: Tensor) -> Tensor:
    """Loss of each row (B,), from floating scores (B, B), baselines (B,) and the logs of alpha and 1 - alpha; `valid`
    (B,) bool."""
    others = (valid & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)).to(scores.dtype)
    count = (valid.sum() - 1).clamp(min=1).to(scores.dtype)
    without = leave_one_out(scores.masked_fill(~valid, FLOOR)) - count.log()
    between = torch.logaddexp(logs[0] + without, (logs[1] + baseline).unsqueeze(1))
    limit = LARGEST * math.log(torch.finfo(scores.dtype).max)
    marginal = (scores - between.diagonal().unsqueeze(1)).clamp(max=limit).exp()
    joint = scores.diagonal().unsqueeze(1) - between
    return -((joint - marginal) * others).sum(1) / count - (valid.sum() > 1).to(scores.dtype)


def leave_one_out(scores: Tensor) -> Tensor:
    """(B, B) from floating scores (B, B): entry (i, j) is the log of the sum over k != j of exp(scores_ik).

    Subtracted from the whole sum, except for the largest entry of a row, beside which the rest may be lost to rounding.
    """
    largest = scores.max(-1, keepdim=True)
    top = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, largest.indices, True)
    shift = largest.values.detach()
    weights = (scores - shift).exp()
    rest = (weights.sum(-1, keepdim=True) - weights).masked_fill(top, 1.0).log() + shift
    without_top = scores.masked_fill(top, FLOOR).logsumexp(-1, keepdim=True)
    return without_top.where(top, rest)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf
