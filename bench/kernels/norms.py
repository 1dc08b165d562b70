"""Sums of two residual branches with their norms, from branches to gradients, compared with torch's and others'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels.contest import Contender, Contest
from bench.kernels.heads import OURS, PLAIN
from worker.kernels.token_norms import NormKind, NormWeights, add_and_normalise, plain

EPS = 1e-5
TORCH, LIGER = "torch's norm of the sum", "Liger, fused"
Normalised = tuple[Tensor, Tensor]
"""A sum and its norm."""


class Tokens(NamedTuple):
    """Sizes of the branches."""

    rows: int
    width: int

    def __str__(self) -> str:
        return f"{self.rows:,} tokens × {self.width:,}"


class Case:
    """Inputs of one size."""

    def __init__(self, kind: NormKind, size: Tokens, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        branches = torch.randn(2, size.rows, size.width, device=device, dtype=dtype).unbind()
        self.x, self.added = (each.requires_grad_() for each in branches)
        weight, offset = torch.randn(2, size.width, device=device, dtype=dtype).unbind()
        self.weight = weight.requires_grad_()
        self.offset = offset.requires_grad_() if kind == "layer" else None
        self.norm = NormWeights(kind, self.weight, self.offset, EPS)
        self.leaves = [self.x, self.added, self.weight, *([] if self.offset is None else [self.offset])]

    def reset(self) -> None:
        """Clear the gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    def loss(self, normalise: Callable[[], Normalised]) -> Tensor:
        """Mean square of the norm, plus the mean of the sum."""
        total, normal = normalise()
        return normal.float().square().mean() + total.float().mean()


def contest(kind: NormKind, size: Tokens, device: torch.device, dtype: torch.dtype) -> Contest:
    """Ours, the plain form, torch's norm, and for `rms` Liger's kernel."""
    case = Case(kind, size, device, dtype)
    forms: dict[str, Callable[[], Callable[[], Normalised]]] = {
        OURS: lambda: partial(add_and_normalise, case.x, case.added, case.norm),
        PLAIN: lambda: partial(plain, case.x, case.added, case.norm),
    }
    if kind != "crms":
        forms[TORCH] = lambda: partial(_torch, case)
    if kind == "rms" and device.type == "cuda":
        forms[LIGER] = lambda: _liger(case)
    branches = 2 * size.rows * size.width * case.x.element_size()
    return Contest(
        f"sum and {kind} norm, {size}",
        device,
        dtype,
        {name: partial(_contender, case, form) for name, form in forms.items()},
        case.reset,
        lambda: case.loss(partial(plain, case.x, case.added, case.norm)),
        branches,
        least_bytes=4 * branches,
        leaves=case.leaves,
    )


def _contender(case: Case, load: Callable[[], Callable[[], Normalised]]) -> Contender:
    return Contender(partial(case.loss, load()))


def _torch(case: Case) -> Normalised:
    total = case.x + case.added
    if case.offset is None:
        return total, F.rms_norm(total, total.shape[-1:], case.weight, EPS)
    return total, F.layer_norm(total, total.shape[-1:], case.weight, case.offset, EPS)


def _liger(case: Case) -> Callable[[], Normalised]:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    apply: Any = LigerFusedAddRMSNormFunction.apply

    def normalise() -> Normalised:
        normal, total = apply(case.x, case.added, case.weight, EPS)
        return total, normal

    return normalise
