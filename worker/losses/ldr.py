"""Label-distributionally robust losses (2112.14869)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses import Aldr, Ldr
from worker.losses.base import LossInputs, target_column
from worker.losses.builder import LossBuilder
from worker.tensors import at_least_float32

FLOOR = 1e-12
"""Least mean of a row's scores: all may underflow to 0."""
SMOOTHING = 1e-5
"""Added to the probabilities from which a sample's weight is computed, as in the authors' code."""
QUANTILES = (0.05, 0.5, 0.95)


class LdrTerm:
    """The margin loss over the worst distribution of the classes, near the uniform one."""

    def __init__(self, spec: Ldr) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits = at_least_float32(inputs.student)
        scores = normalised_scores(F.softplus(logits)) if self.spec.scores == "normalised" else logits
        return robust_margin(scores, target_column(inputs.labels), self.spec.kl_weight, self.spec.margin)


class SampleWeights(nn.Module):
    """Weights of the training samples (N,), float32."""

    weights: Tensor

    def __init__(self, samples: int, first: float) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((samples,), first))


class AldrTerm:
    """As `LdrTerm`, with the weights of the samples, and what they cost.

    All processes set the weights of the whole batch, so that they have the same ones.
    """

    def __init__(self, spec: Aldr, builder: LossBuilder) -> None:
        self.spec, self._everywhere = spec, builder.everywhere
        name = f"{spec.kind}:{builder.param}".replace(".", "_")
        samples = builder.samples
        self.memory = builder.part(name, lambda: SampleWeights(samples, spec.kl_weight), frozen=True)

    def __call__(self, inputs: LossInputs) -> Tensor:
        assert inputs.sample_index is not None  # of plain steps
        logits, spec = at_least_float32(inputs.student), self.spec
        scores = normalised_scores(F.softplus(logits) if spec.scores == "softplus" else logits)
        resistance = spec.alpha * math.log(logits.shape[-1])
        with torch.no_grad():
            last = self._stored[inputs.sample_index].to(scores.dtype).unsqueeze(-1)
            weights = spec.kl_weight * (1.0 - certainty(scores / last) / resistance)
            self._store(inputs, weights)
        losses = robust_margin(scores, target_column(inputs.labels), weights.unsqueeze(-1), spec.margin)
        return losses - resistance / (2.0 * spec.kl_weight) * (weights - spec.kl_weight).square()

    def figures(self) -> dict[str, float]:
        """Mean, least, largest and some quantiles of the weights of all training samples."""
        found = self._stored.double().cpu()
        quantiles = found.quantile(found.new_tensor(QUANTILES)).tolist()
        ends = {"mean": float(found.mean()), "min": float(found.min()), "max": float(found.max())}
        return ends | {f"q{round(100 * at):02d}": value for at, value in zip(QUANTILES, quantiles, strict=True)}

    @property
    def _stored(self) -> Tensor:
        assert isinstance(self.memory, SampleWeights)
        return self.memory.weights

    def _store(self, inputs: LossInputs, weights: Tensor) -> None:
        """Replace the weights of the valid samples of all processes."""
        assert inputs.sample_index is not None
        stored, valid = self._stored, torch.ones_like(weights) if inputs.valid is None else inputs.valid
        found = torch.stack((weights * valid, valid.to(weights.dtype)), dim=1).to(stored.dtype)
        seen = self._everywhere(stored.new_zeros(len(stored), 2).index_copy(0, inputs.sample_index, found))
        stored.copy_(torch.where(seen[:, 1] > 0.0, seen[:, 0] / seen[:, 1].clamp(min=1.0), stored))


def certainty(logits: Tensor) -> Tensor:
    """KL of each row's smoothed softmax from the uniform distribution (B,), from logits (B, C), float32 or float64."""
    probabilities = logits.softmax(-1) + SMOOTHING
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return (probabilities * (logits.shape[-1] * probabilities).log()).sum(-1)


def normalised_scores(scores: Tensor) -> Tensor:
    """Rows (B, C), float32 or float64, over their mean magnitude."""
    return scores / scores.abs().mean(-1, keepdim=True).clamp(min=FLOOR)


def robust_margin(scores: Tensor, labels: Tensor, kl_weight: Tensor | float, margin: float) -> Tensor:
    """l log(1 / C sum_c exp((g_c - g_y + margin [c != y]) / l)) of each row (B,), for `scores` g (B, C), float32 or
    float64, `labels` (B, 1) int64 and l = `kl_weight`, a number or one per row (B, 1)."""
    gaps = scores - scores.gather(-1, labels)
    gaps = gaps + margin * torch.ones_like(gaps).scatter(-1, labels, 0.0)
    found = kl_weight * ((gaps / kl_weight).logsumexp(-1, keepdim=True) - math.log(scores.shape[-1]))
    return found.squeeze(-1)
