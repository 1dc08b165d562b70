"""Losses of queries with candidates, from vectors to gradients: `mw` and `dexml`, compared with their plain forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Dexml, Mw
from bench.kernels.contest import Contender, Contest
from bench.kernels.heads import OURS, PLAIN
from worker.data.pairs import NEGATIVE, POSITIVE, QUERY
from worker.losses.base import LossInputs
from worker.losses.dexml import DexmlTerm
from worker.losses.retrieval import MwTerm

TEMPERATURE = 0.05


class Listed(NamedTuple):
    """Sizes of a batch of queries; the first candidate is the positive, and all texts differ."""

    queries: int
    candidates: int
    width: int

    def __str__(self) -> str:
        return f"{self.queries:,} queries × {self.candidates:,} candidates × {self.width:,} dimensions"


class Case:
    """Inputs of one size."""

    def __init__(self, size: Listed, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.rows = 1 + size.candidates
        count = size.queries * self.rows
        self.vectors = torch.randn(count, size.width, device=device, dtype=dtype).requires_grad_()
        roles = torch.full((size.queries, self.rows), float(NEGATIVE))
        roles[:, 0], roles[:, 1] = QUERY, POSITIVE
        labels = torch.stack([torch.full((count,), torch.nan), torch.arange(float(count)), roles.flatten()], 1)
        self.labels = labels.to(device)
        self._terms = {"mw": MwTerm(Mw(temperature=TEMPERATURE)), "dexml": DexmlTerm(Dexml(temperature=TEMPERATURE))}

    def reset(self) -> None:
        """Clear the gradient."""
        self.vectors.grad = None

    def ours(self, kind: str) -> Tensor:
        """The term of this kind: a scalar."""
        return self._terms[kind](LossInputs(self.vectors, self.labels, None, rows_per_sample=self.rows)).mean()

    def plain(self, kind: str) -> Tensor:
        """The plain form on all pairs, or all scores, at once: a scalar."""
        unit = F.normalize(self.vectors.float(), dim=-1)
        scores = unit[:: self.rows] @ unit.T / TEMPERATURE
        documents = torch.arange(len(unit), device=unit.device) % self.rows != 0
        query = torch.arange(len(scores), device=unit.device)
        positive = torch.zeros_like(scores, dtype=torch.bool).index_put(
            (query, query * self.rows + 1), torch.ones_like(query, dtype=torch.bool)
        )
        if kind == "mw":
            return F.softplus(scores[documents & ~positive] - scores[positive].unsqueeze(1)).mean()
        return -scores.masked_fill(~documents, -torch.inf).log_softmax(1)[positive].mean()


def contest(kind: str, size: Listed, device: torch.device, dtype: torch.dtype) -> Contest:
    """Both forms of the loss of this kind."""
    case = Case(size, device, dtype)
    load: dict[str, Callable[[], Contender]] = {
        OURS: lambda: Contender(partial(case.ours, kind)),
        PLAIN: lambda: Contender(partial(case.plain, kind)),
    }
    stored = case.vectors.numel() * case.vectors.element_size()
    return Contest(
        f"{kind}, {size}",
        device,
        dtype,
        load,
        case.reset,
        partial(case.plain, kind),
        stored,
        least_bytes=2 * stored,
        leaves=[case.vectors],
    )
