"""Metrics of a regression's predictions.

N samples, C outputs. Predictions and targets are (N, C) or (N,), of any floating dtype, and are converted to float64 on
the CPU. Errors are in the units of the targets; all outputs have the same weight.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean over all numbers (N, C), a scalar in squared units."""
    return _gaps(predictions, targets).square().mean()


def root_mean_squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Root of the mean over all numbers (N, C), a scalar."""
    return mean_squared_error(predictions, targets).sqrt()


def mean_absolute_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean over all numbers (N, C), a scalar."""
    return _gaps(predictions, targets).abs().mean()


def r_squared(predictions: Tensor, targets: Tensor) -> Tensor:
    """Coefficient of determination of numbers (N, C), a scalar, mean over the outputs: 1 is perfect, 0 is as good as
    the targets' mean.

    An output whose targets are all the same has 1 if they are predicted exactly, else 0.
    """
    truth = _columns(targets)
    residual = _gaps(predictions, targets).square().sum(0)
    total = _centered(truth).square().sum(0)
    return torch.where(total > 0.0, 1.0 - residual / total, (residual == 0.0).double()).mean()


def pearson_correlation(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean over the outputs of numbers (N, C), a scalar; an output that is constant on either side has 0."""
    centered, truth = _centered(_columns(predictions)), _centered(_columns(targets))
    norms = torch.linalg.vector_norm(centered, dim=0) * torch.linalg.vector_norm(truth, dim=0)
    return torch.where(norms > 0.0, (centered * truth).sum(0) / norms, 0.0).mean()


def _gaps(predictions: Tensor, targets: Tensor) -> Tensor:
    return _columns(predictions) - _columns(targets)


def _centered(columns: Tensor) -> Tensor:
    """Without each column's mean; exactly 0 where a column is constant, whatever its mean is rounded to."""
    constant = (columns == columns[0]).all(0)
    return (columns - columns.mean(0)).masked_fill(constant, 0.0)


def _columns(values: Tensor) -> Tensor:
    """(N, C) in float64 on the CPU."""
    return values.detach().double().cpu().reshape(len(values), -1)
