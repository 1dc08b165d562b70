"""The objective over samples of several texts."""

from __future__ import annotations

from torch import Tensor

from app.recipe.losses import Loss
from app.recipe.losses.embeddings import EmbeddingTerm
from worker.data.pairs import PADDING, ROLE
from worker.losses.base import LossTerm
from worker.losses.objective import BatchOutputs, Objective
from worker.tensors import surely_none


class EmbeddingObjective(Objective):
    """Named terms and their weighted sum, as `Objective`, with a row for each text. The rows that fill up a list of
    candidates count nowhere: a term is the mean over the samples of the mean over a sample's texts, however a batch is
    split. Terms of other tasks, too, that couple rows are means over all texts of the batch.
    """

    def _sum(self, spec: Loss, term: LossTerm, seen: BatchOutputs, targets: Tensor, valid: Tensor | None) -> Tensor:
        """Over the texts, as many as there are rows."""
        there = targets[:, ROLE] != PADDING
        if surely_none(~there):
            return super()._sum(spec, term, seen, targets, valid)
        losses = self._loss(spec, term, seen, targets, there).where(there, 0)
        if spec.couples_rows and not isinstance(spec, EmbeddingTerm):
            return losses.sum() / there.sum().clamp(min=1) * len(losses)
        texts = there.view(-1, seen.rows_per_sample).sum(1)
        return (losses.view(len(texts), -1).sum(1) / texts.clamp(min=1)).sum() * seen.rows_per_sample
