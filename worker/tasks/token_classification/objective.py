"""The objective of a tagger: its rows are words.

B texts of S tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from app.recipe.losses import Loss
from app.recipe.losses.taps import Taps
from worker.losses.base import LossTerm
from worker.losses.objective import BatchOutputs, Objective, row_inputs


class WordObjective(Objective):
    """Named terms and their weighted sum, as `Objective`, with a row for each token; those that no word begins with
    are ignored. Logits are (B, S, C) on both sides, targets (B, S).

    Rows of terms on features are texts. Such a text counts as often as it has words that count, so that the terms are
    means of as many rows as the others are, however a batch is split. Where a term couples its rows, their mean is what
    it makes right, and all texts with a word count alike.
    """

    def __call__(self, seen: BatchOutputs, count: Tensor, epoch: float = 0.0, epochs: float = 1.0) -> dict[str, Tensor]:
        """See `Objective`."""
        return super().__call__(_by_token(seen), count, epoch, epochs)

    def _sum(self, spec: Loss, term: LossTerm, seen: BatchOutputs, targets: Tensor, valid: Tensor | None) -> Tensor:
        """Over the words that count."""
        if spec.taps() == Taps():
            return super()._sum(spec, term, seen, targets, valid)
        assert seen.tokens is not None  # of texts
        counted = (torch.ones_like(targets) if valid is None else valid.long()).view(seen.tokens.shape)
        words, there = counted.sum(1), counted.any(1)
        (teacher,) = self._names(spec)  # features have widths of their own, so that a term is built for one teacher
        losses = term(row_inputs(seen, targets, there, teacher)).where(there, 0)
        if spec.couples_rows:
            return losses.sum() / there.sum().clamp(min=1) * words.sum()
        return (losses * words).sum()


def _by_token(seen: BatchOutputs) -> BatchOutputs:
    signals = {name: replace(signal, outputs=signal.logits.flatten(0, 1)) for name, signal in seen.signals.items()}
    return replace(seen, student=seen.outputs.flatten(0, 1), targets=seen.targets.flatten(), signals=signals)
