"""Losses of a language model whose last layer is a codebook (VQ-Logits, arXiv 2505.10202).

All tokens of one code have the code's logit l_k. With c_k tokens of code k,

    log Z = logsumexp_k(l_k + log c_k),    CE = log Z - l_{code of the label},

which is the cross-entropy over codes with the logits l_k + log c_k, plus log c of the label's code. The divergence from
a teacher p at a temperature T is that of its mass by code, P, from softmax(l_k / T + log c_k), plus a part without
gradient: H(P) - H(p) + sum_k P_k log c_k. So both are computed over the K codes, with a bias of log c_k, and the logits
of the V tokens are never there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from worker.kernels.linear import DenseTeacher, chunk_budget, linear_distillation
from worker.kernels.rows import row_loss_
from worker.kernels.spec import RowLosses, RowSpec
from worker.outputs import HiddenStates
from worker.tensors import RowIndex, at_least_float32

COPIES = 3
"""Bound on the copies of a teacher's logits of a chunk in float32: logits, log-probabilities and probabilities."""


def log_counts(codes: Tensor, number: int) -> Tensor:
    """Logarithm of the tokens, or classes, of each of `number` codes (K,) float64; -inf: there are none. `codes` (V,)
    int64."""
    ones = torch.ones_like(codes, dtype=torch.float64)
    return ones.new_zeros(number).index_add_(0, codes, ones).log()  # without a wait for the device


class CodeMass(NamedTuple):
    """A distribution of tokens, by their codes."""

    logs: Tensor
    """Log-probabilities of codes (n, K), floating; -inf where a code has no mass, or less than the dtype holds."""
    within: Tensor
    """Mean entropy of the tokens within their code (n,) in nats: H(p) - H(P)."""

    def least_kl(self, log_counts: Tensor) -> Tensor:
        """The KL(p || q) (n,) in nats below which no q with equal probabilities within each code falls, for codes with
        `log_counts` (K,): sum_k P_k log c_k - (H(p) - H(P))."""
        known = log_counts.to(self.logs).where(self.logs > -torch.inf, 0.0)
        return (self.logs.exp() * known).sum(-1) - self.within


def code_mass(log_p: Tensor, codes: Tensor, number: int) -> CodeMass:
    """The mass of `number` codes, from log-probabilities of tokens (n, V), floating, and their codes (V,) int64."""
    p = log_p.exp()
    sums = p.new_zeros(len(p), number).index_add_(1, codes, p)
    logs, least = sums.log(), torch.finfo(p.dtype).min
    of_tokens = p.mul_(log_p).nan_to_num_(nan=0.0).sum(-1)  # 0 times -inf; of NaN logits the sums are NaN, too
    return CodeMass(logs, (sums * logs.clamp(min=least)).sum(-1) - of_tokens)


class CodebookTeacher(DenseTeacher):
    """A teacher with a codebook, for a student with a row for every token."""

    def __init__(self, states: HiddenStates) -> None:
        self._states = states
        self.bytes_per_row = states.vocabulary * states.weight.element_size()

    def logits(self, rows: RowIndex) -> Tensor:
        """Logits (n, V), floating, of some rows."""
        return self._states.logits(rows)


class CodedLabels(DenseTeacher):
    """Adds what the cross-entropy over codes lacks of that over tokens."""

    def __init__(self, log_counts: Tensor) -> None:
        self._log_counts = log_counts

    def losses(
        self, student: Tensor, rows: RowIndex, labels: Tensor | None, spec: RowSpec, scale: Tensor, gradient: bool
    ) -> Tensor:
        """See `KernelTeacher`; `labels` are codes."""
        assert labels is not None  # of a language model
        weights = scale.expand(student.shape[0])
        total, divergence, cross_entropy = row_loss_(
            student, None, labels, spec, row_weights=weights, gradient=gradient
        )
        valid = labels != spec.ignore_index
        rest = self._log_counts[labels.where(valid, 0)].where(valid, 0.0).to(total.dtype)
        return torch.stack((total + spec.ce_weight * rest * scale, divergence, cross_entropy + rest))


class CodedTeacher(DenseTeacher):
    """A teacher's mass by code, as logits at the temperature of the divergence.

    As everywhere, a token that only one side has is left out after the softmax: what the teacher has beyond the
    student's vocabulary is a column more, which the student masks.
    """

    def __init__(self, logits: Callable[[RowIndex], Tensor], width: int, codes: Tensor, number: int) -> None:
        """`logits` returns a teacher's (n, width) for some rows; `codes` (V,) int64 are those of the student's
        tokens."""
        self._logits, self._width = logits, width
        self._codes, self._number = codes[:width], number
        self._log_counts = log_counts(codes, number)
        self.bytes_per_row = 4 * (COPIES * width + number)

    def losses(
        self, student: Tensor, rows: RowIndex, labels: Tensor | None, spec: RowSpec, scale: Tensor, gradient: bool
    ) -> Tensor:
        """See `KernelTeacher`; the divergence is `forward-kl`."""
        assert spec.divergence is not None  # by the caller
        temperature, shared = spec.divergence.temperature, len(self._codes)
        log_p = (at_least_float32(self._logits(rows)) / temperature).log_softmax(-1)
        found = code_mass(log_p[:, :shared], self._codes, self._number)
        mass, rest = found.logs, found.least_kl(self._log_counts)
        if labels is not None:
            rest = rest.where(labels != spec.ignore_index, 0.0)
        if self._width > shared:
            mass = torch.cat((mass, log_p[:, shared:].logsumexp(-1, keepdim=True)), -1)
        weights, teacher = scale.expand(student.shape[0]), mass * temperature
        total, divergence, cross_entropy = row_loss_(
            student, teacher, labels, spec, row_weights=weights, gradient=gradient
        )
        rest = (temperature**2 * rest).to(total.dtype)
        return torch.stack((total + spec.divergence_weight * rest * scale, divergence + rest, cross_entropy))


def codebook_distillation(
    states: HiddenStates,
    teacher: Callable[[RowIndex], Tensor] | None,
    width: int,
    labels: Tensor,
    spec: RowSpec,
    divisor: Tensor,
) -> RowLosses:
    """As `linear_distillation`, for a student with a codebook: the same values, gradients for its hidden states and
    codebook.

    `teacher` returns logits (n, V_t) of some rows, `width` is V_t, and `labels` (N,) int64 are tokens. The two parts
    are computed in a pass each, because the bias of a divergence depends on its temperature. Raises ValueError for
    another divergence than `forward-kl`, and for label smoothing, which is not uniform over codes.
    """
    codes = states.codes
    assert codes is not None  # by the caller
    if spec.label_smoothing or (spec.divergence is not None and spec.divergence.kind != "forward-kl"):
        raise ValueError("a codebook has cross-entropy without smoothing, and the forward divergence")
    rows, number = states.rows, len(states.weight)
    coded = codes[labels.where(labels != spec.ignore_index, 0)].where(labels != spec.ignore_index, spec.ignore_index)
    counts, found = log_counts(codes, number), []
    if spec.ce_weight:
        bias, hard = counts.to(rows.dtype), replace(spec, divergence=None)
        found.append(
            linear_distillation(rows, states.weight, CodedLabels(bias), coded, hard, bias=bias, divisor=divisor)
        )
    if spec.divergence is not None and teacher is not None:
        bias, soft = (spec.divergence.temperature * counts).to(rows.dtype), replace(spec, ce_weight=0.0)
        side = CodedTeacher(teacher, width, codes, number)
        budget = chunk_budget(rows, width)  # a chunk of few rows would read the teacher's whole last layer for them
        found.append(
            linear_distillation(rows, states.weight, side, coded, soft, bias=bias, divisor=divisor, budget=budget)
        )
    return RowLosses(*(torch.stack(part).sum(0) for part in zip(*found, strict=True)))
