"""Losses of rows of materialised logits: half of forward KL at temperature 2 plus half of cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels.contest import Contender, Contest
from bench.kernels.heads import COMPILED, OURS, PLAIN
from worker.kernels.rows import row_loss_, runs_on_triton
from worker.kernels.spec import Divergence, RowInputs, RowSpec

TEMPERATURE = 2.0
MOST_REPEATS, LOGITS_OF_A_TURN = 50, 1 << 24
SPEC = RowSpec(Divergence("forward-kl", temperature=TEMPERATURE), divergence_weight=0.5, ce_weight=0.5)
THREE_PASSES = "Stillhouse, maximum looked for first"


class Size(NamedTuple):
    """Shape of the logits of student and teacher."""

    rows: int
    classes: int

    def __str__(self) -> str:
        return f"{self.rows:,} rows × {self.classes:,} classes"


class Case:
    """Inputs of one size; the kernel overwrites the student's, so they are restored for every pass."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        first, self.teacher = (torch.randn(size, device=device).mul_(3.0).to(dtype) for _ in range(2))
        self._first, self.leaf, self.buffer = first, first.clone().requires_grad_(), first.clone()
        self.labels = torch.randint(size.classes, (size.rows,), device=device)
        self.weights = torch.full((size.rows,), 1.0 / size.rows, device=device)

    def reset(self) -> None:
        """Clear the gradient and restore the logits."""
        self.leaf.grad = None
        self.buffer.copy_(self._first)

    def plain(self, alone: bool = False) -> Tensor:
        """The plain form: a scalar."""
        student, teacher = self.leaf.float(), self.teacher.float()
        log_q, log_p = ((side / TEMPERATURE).log_softmax(-1) for side in (student, teacher))
        divergence = TEMPERATURE**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return divergence if alone else 0.5 * divergence + 0.5 * F.cross_entropy(student, self.labels)

    def ours(self) -> Tensor:
        """The kernel: a scalar; the gradient overwrites the logits, if there is one."""
        gradient = torch.is_grad_enabled()
        losses = row_loss_(self.buffer, self.teacher, self.labels, SPEC, row_weights=self.weights, gradient=gradient)
        return losses.total.sum()

    def three_passes(self) -> Tensor:
        """The kernel with the usual softmax, to measure the effect of separate mantissa and exponent."""
        from worker.kernels.row_kernels.launches import launch

        inputs = RowInputs(self.buffer, self.teacher, self.labels, self.weights)
        losses = launch(inputs, SPEC, torch.is_grad_enabled(), three_passes=True)
        return (0.5 * (losses[0] + losses[1]) * self.weights).sum()


def contest(size: Size, device: torch.device, dtype: torch.dtype) -> Contest:
    """All contenders."""
    case = Case(size, device, dtype)
    load: dict[str, Callable[[], Contender]] = {
        OURS: lambda: Contender(case.ours),
        PLAIN: lambda: Contender(case.plain),
        COMPILED: lambda: Contender(torch.compile(case.plain)),
    }
    if runs_on_triton(case.buffer):
        load[THREE_PASSES] = lambda: Contender(case.three_passes)
    logits = case.buffer.numel() * case.buffer.element_size()
    return Contest(
        str(size),
        device,
        dtype,
        load,
        case.reset,
        partial(case.plain, alone=True),
        logits,
        least_bytes=3 * logits,
        leaves=[case.leaf],
        repeats=max(2, min(MOST_REPEATS, LOGITS_OF_A_TURN // math.prod(size))),
    )
