"""Computes outputs of models for samples, on the CPU in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from app.recipe.plan import EVAL_BATCH
from worker.students.model import Model
from worker.tasks.base import Call


def predict(model: Model, samples: Tensor) -> Tensor:
    """Outputs (N, C) float32 on the CPU for raw `samples` (N, …), in evaluation mode and full float32."""
    with evaluating(model):
        return predict_with(model, samples)


@contextmanager
def evaluating(model: Model, *, differentiable: bool = False) -> Iterator[None]:
    """Run a model in evaluation mode, without gradients and in full float32 within the context; with `differentiable`,
    gradients can be computed within `torch.enable_grad`.

    TensorFloat-32 is off: its outputs would differ from those of the exported file in the third digit.
    """
    was_training = model.training
    mode = torch.no_grad() if differentiable else torch.inference_mode()
    with mode, torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


def predict_with(call: Call, samples: Tensor) -> Tensor:
    """Outputs (N, C) float32 on the CPU of any function of raw samples (N, …), a batch at a time."""
    return torch.cat([call(batch).float().cpu() for batch in torch.split(samples, EVAL_BATCH)])


def mean_outputs(outputs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Mean (N, C) float32 of several teachers' outputs (N, C) by their relative weights; a single teacher's are
    returned as they are."""
    if len(outputs) == 1:
        return outputs[0]
    shares = _shares(weights)
    return (torch.stack(list(outputs)).double() * shares.view(-1, 1, 1)).sum(0).float()


def mixture_of_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Log-probabilities (N, C) float32 of the mixture of several teachers, from their logits (N, C) and relative
    weights; a single teacher's logits are returned as they are."""
    if len(logits) == 1:
        return logits[0]
    logs = torch.stack(list(logits)).double().log_softmax(-1)
    return torch.logsumexp(logs + _shares(weights).log().view(-1, 1, 1), dim=0).float()


def _shares(weights: Sequence[float]) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)
