"""Launches of the row kernels: their constants, and the assignment of rows to programs."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import torch
import triton
from torch import Tensor

from worker.kernels.devices import device_of
from worker.kernels.plan import plan
from worker.kernels.row_kernels.kernels import row_kernel, scale_kernel
from worker.kernels.spec import Divergence, RowInputs, RowSpec

MOST_COLUMNS = 2048
"""Most columns of a block: a wider one spills registers, because every lane holds a separate sum."""
MOST_ROWS = 16
LOGITS_OF_A_WARP = 256
"""Eight per lane: twice as many would take all 255 registers."""


def launch(inputs: RowInputs, spec: RowSpec, gradient: bool, three_passes: bool = False) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy (R,) float32 of checked inputs; with `gradient`, it overwrites the student's logits.

    `three_passes` computes the maximum before the sum, as is usual; for comparison.
    """
    student, teacher, labels, row_weights = inputs
    planned, divergence = plan(spec), spec.divergence or Divergence("forward-kl")
    temperature = 1.0 if planned.kind == "logit-mse" else divergence.temperature
    rows, width = student.shape
    other = student if teacher is None or not planned.kind else _in_rows(teacher)
    block = min(triton.next_power_of_2(width), MOST_COLUMNS)
    together = min(MOST_ROWS, MOST_COLUMNS // block, triton.next_power_of_2(rows))
    losses = torch.zeros(2, rows, dtype=torch.float32, device=student.device)
    with device_of(student):
        row_kernel[(triton.cdiv(rows, together),)](
            student,
            other,
            *(student if side is None else side.contiguous() for side in (labels, row_weights)),
            *losses,
            rows,
            width,
            other.shape[1],
            student.stride(0),
            other.stride(0),
            spec.ignore_index,
            temperature,
            planned.share,
            divergence.delta,
            planned.factor,
            planned.target_factor,
            spec.divergence_weight,
            spec.ce_weight,
            spec.label_smoothing,
            KIND=planned.kind,
            CENTERED=divergence.centered,
            CE=spec.ce_weight != 0.0,
            SMOOTHED=spec.ce_weight != 0.0 and spec.label_smoothing != 0.0,
            ONE_SOFTMAX=temperature == 1.0 and planned.kind not in {"", "logit-mse", "nkd", "dkd"},
            LABELLED=labels is not None,
            ROW_WEIGHTED=row_weights is not None,
            GRADIENT=gradient,
            THREE_PASSES=three_passes,
            R=together,
            B=block,
            num_warps=max(1, together * block // LOGITS_OF_A_WARP),
        )
    return losses[0], losses[1]


def scale(rows: Tensor, factors: Tensor) -> None:
    """Multiply each row (R, C) by its factor (R,) in place, both floating, in one launch, without waiting."""
    block = min(triton.next_power_of_2(rows.shape[1]), 2 * MOST_COLUMNS)
    with device_of(rows):
        scale_kernel[(len(rows),)](rows, factors.contiguous(), rows.shape[1], rows.stride(0), B=block)


def _in_rows(logits: Tensor) -> Tensor:
    return logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()
