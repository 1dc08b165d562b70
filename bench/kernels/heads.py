"""Distillation at the last layer: half of forward KL plus half of cross-entropy, from hidden states to gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels.contest import Contender, Contest
from worker.kernels.linear import HiddenTeacher, NoTeacher, linear_distillation
from worker.kernels.sparse import TopKTeacher
from worker.kernels.spec import Divergence, RowSpec
from worker.kernels.top_k import TopK
from worker.losses.codebook import codebook_distillation
from worker.outputs import HiddenStates

SPEC = RowSpec(Divergence("forward-kl"), divergence_weight=0.5, ce_weight=0.5)
KEPT = 64
CODE_SHARE = 8
"""Tokens for each row of the codebook."""
OURS, PLAIN, COMPILED = "Stillhouse", "plain eager", "torch.compile of it"
NARROW, SPARSE = "Stillhouse, products in bf16", f"Stillhouse, teacher's {KEPT} largest logits"
LIGER, LIGER_TRITON = "Liger, chunked", "Liger, Triton (no cross-entropy)"
TRL = "TRL, chunked (no cross-entropy)"
STUDENT = "Stillhouse, cross-entropy alone (no teacher)"


class Shape(NamedTuple):
    """Sizes of student and teacher, which are the same."""

    rows: int
    hidden: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.rows:,} rows × {self.hidden:,} hidden numbers × {self.vocabulary:,} classes"


class Case:
    """Inputs of one shape."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        make = partial(torch.randn, device=device, dtype=dtype)
        size, deviation = (shape.rows, shape.hidden), shape.hidden**-0.5
        self.hidden, self.teacher_hidden = make(size).requires_grad_(), make(size)
        weights = [make(shape.vocabulary, shape.hidden).mul_(deviation) for _ in range(2)]
        self.weight, self.teacher_weight = weights[0].requires_grad_(), weights[1]
        self.labels = torch.randint(shape.vocabulary, (shape.rows,), device=device)

    def reset(self) -> None:
        """Clear the gradients."""
        self.hidden.grad = self.weight.grad = None

    @property
    def student_bytes(self) -> int:
        """Bytes of the tensors with a gradient, and so of the gradients."""
        return sum(leaf.numel() * leaf.element_size() for leaf in (self.hidden, self.weight))

    def plain(self, alone: bool = False) -> Tensor:
        """The plain form, on all logits at once: a scalar in float32."""
        return self.from_logits(F.linear(self.hidden, self.weight).float(), alone)

    def from_logits(self, student: Tensor, alone: bool) -> Tensor:
        """The plain form from the student's logits (N, V) float32."""
        with torch.no_grad():
            teacher = F.linear(self.teacher_hidden, self.teacher_weight).float().log_softmax(-1)
        divergence = F.kl_div(student.log_softmax(-1), teacher, reduction="batchmean", log_target=True)
        return divergence if alone else 0.5 * divergence + 0.5 * F.cross_entropy(student, self.labels)

    def ours(self) -> Tensor:
        """The fused form: a scalar."""
        teacher = HiddenTeacher(self.teacher_hidden, self.teacher_weight)
        return linear_distillation(self.hidden, self.weight, teacher, self.labels, SPEC).total


def contest(shape: Shape, device: torch.device, dtype: torch.dtype) -> Contest:
    """All contenders."""
    case = Case(shape, device, dtype)
    load: dict[str, Callable[[], Contender]] = {
        OURS: lambda: Contender(case.ours, early=True),
        PLAIN: lambda: Contender(case.plain),
        COMPILED: lambda: Contender(torch.compile(case.plain)),
        LIGER: lambda: Contender(_liger(case), early=True),
        TRL: lambda: Contender(_trl(case), alone=True),
    }
    if device.type == "cuda":
        load[LIGER_TRITON] = lambda: Contender(_liger_triton(case), alone=True, early=True)
    else:
        load[NARROW] = lambda: Contender(partial(_narrow, case), early=True, tolerance=1e-2)
    return Contest(
        str(shape),
        device,
        dtype,
        load,
        case.reset,
        partial(case.plain, alone=True),
        case.student_bytes,
        least_bytes=3 * case.student_bytes,
        flops=8 * math.prod(shape),
    )


def sparse_contest(shape: Shape, device: torch.device, dtype: torch.dtype) -> Contest:
    """A teacher with its largest logits alone, compared with one with a forward pass of the last layer."""
    case = Case(shape, device, dtype)
    with torch.no_grad():
        teacher = _sparse_teacher(case)
    load: dict[str, Callable[[], Contender]] = {
        SPARSE: lambda: Contender(partial(_sparse, case, teacher), early=True, tolerance=math.inf),
        OURS: lambda: Contender(case.ours, early=True),
        STUDENT: lambda: Contender(_student_alone(case), early=True, tolerance=math.inf),
    }
    return Contest(
        f"{shape}, {KEPT} logits kept",
        device,
        dtype,
        load,
        case.reset,
        partial(case.plain, alone=True),
        case.student_bytes,
        least_bytes=2 * case.student_bytes,
        flops=6 * math.prod(shape),
    )


def codebook_contest(shape: Shape, device: torch.device, dtype: torch.dtype) -> Contest:
    """A student with a codebook of an eighth of the vocabulary, compared with the logits of all tokens."""
    case = CodebookCase(shape, device, dtype)
    load: dict[str, Callable[[], Contender]] = {
        OURS: lambda: Contender(case.ours, early=True),
        PLAIN: lambda: Contender(case.plain),
        COMPILED: lambda: Contender(torch.compile(case.plain)),
    }
    return Contest(
        f"{shape}, a codebook of {len(case.weight):,} rows",
        device,
        dtype,
        load,
        case.reset,
        partial(case.plain, alone=True),
        case.student_bytes,
        least_bytes=2 * case.student_bytes + case.teacher_weight.numel() * case.teacher_weight.element_size(),
        flops=2 * math.prod(shape) + 12 * math.prod(shape) // CODE_SHARE,
    )


class CodebookCase(Case):
    """Inputs of one shape; tokens have random codes."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(shape, device, dtype)
        number = shape.vocabulary // CODE_SHARE
        self.weight = self.weight.detach()[:number].clone().requires_grad_()
        self.codes = torch.randint(number, (shape.vocabulary,), device=device)

    def plain(self, alone: bool = False) -> Tensor:
        """See `Case`."""
        student = F.linear(self.hidden, self.weight).float()[:, self.codes]
        return self.from_logits(student, alone)

    def ours(self) -> Tensor:
        """See `Case`."""
        states = HiddenStates(self.hidden.unsqueeze(0), self.weight, None, self.codes)
        teacher = HiddenTeacher(self.teacher_hidden, self.teacher_weight)
        rows = torch.tensor(len(self.labels), device=self.labels.device)
        width = len(self.teacher_weight)
        return codebook_distillation(states, teacher.logits, width, self.labels, SPEC, rows).total


def _student_alone(case: Case) -> Callable[[], Tensor]:
    spec = RowSpec(None, ce_weight=1.0)
    return lambda: linear_distillation(case.hidden, case.weight, NoTeacher(), case.labels, spec).total


def _sparse(case: Case, teacher: TopKTeacher) -> Tensor:
    return linear_distillation(case.hidden, case.weight, teacher, case.labels, SPEC).total


def _sparse_teacher(case: Case) -> TopKTeacher:
    """The teacher's largest logits, computed some rows at a time, as for a cache."""
    parts = []
    for hidden in case.teacher_hidden.split(256):
        logits = F.linear(hidden, case.teacher_weight).float()
        values, indices = logits.topk(KEPT, dim=1)
        parts.append((indices, values, logits.scatter_(1, indices, -torch.inf).logsumexp(1, keepdim=True)))
    return TopKTeacher(TopK(*(torch.cat(column) for column in zip(*parts, strict=True))), case.weight.shape[0])


def _narrow(case: Case) -> Tensor:
    with torch.autocast(case.hidden.device.type, torch.bfloat16):
        return case.ours()


def _liger(case: Case) -> Callable[[], Tensor]:
    """Liger's default, which is compiled."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss: Any = LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.0)
    return lambda: loss(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight, case.labels)


def _liger_triton(case: Case) -> Callable[[], Tensor]:
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    loss: Any = LigerFusedLinearJSD(jsd_beta=0.0)
    return lambda: loss(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight)


def _trl(case: Case) -> Callable[[], Tensor]:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    apply: Any = ChunkedDivergenceFunction.apply
    sides = case.hidden, case.weight, None, case.teacher_hidden, case.teacher_weight, None
    return lambda: apply(*sides, 0.0)[0].mean()
