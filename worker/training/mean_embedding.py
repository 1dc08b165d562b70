"""Mean embedding of a job's samples by its teacher: a description of the data set in a few numbers.

It is collected by hooks during the passes that measure the teacher before training, so that it costs no pass of its
own, draws no random number of the training and leaves the network as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from worker.students.model import Model, last_layer
from worker.tasks.base import Figures

MAX_ROWS = 1000
"""Largest number of rows, samples or tokens, that are averaged."""
WIDTH = 50
"""Length of the embedding."""
SEED = 2109_11105
"""Seed of the projection, which is the same in every job for features of one width."""


class MeanEmbedding:
    """Collects the mean feature of a teacher over at most `MAX_ROWS` rows: inputs of its last linear layer, hidden
    states of a language model, or the outputs of a network without such a layer."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._rows = 0
        self._source = ""

    @contextmanager
    def collecting(self, model: Model) -> Iterator[None]:
        """Collect from all forward passes of `model` within the context."""
        handle = self._hook(model)
        try:
            yield
        finally:
            handle.remove()

    def _hook(self, model: Model) -> Any:
        head = last_layer(model) or model.codebook
        if model.config.predicts_tokens:
            self._source = "hidden states"
            body: Any = model.network.base_model
            return body.register_forward_hook(lambda _, __, output: self._add(output[0]))
        if head is not None:
            self._source = "features"
            return head.register_forward_pre_hook(lambda _, inputs: self._add(*inputs[:1]))
        self._source = "outputs"
        return model.register_forward_hook(lambda _, __, output: self._add(output))

    def _add(self, values: Tensor | None = None) -> None:
        """Add the first rows of values (..., D), floating, that are still wanted."""
        if values is None or self._rows >= MAX_ROWS:
            return
        rows = values.detach().reshape(-1, values.shape[-1])[: MAX_ROWS - self._rows].double().sum(0).cpu()
        if self._sum is None or len(self._sum) == len(rows):
            self._rows += min(MAX_ROWS - self._rows, math.prod(values.shape[:-1]))
            self._sum = rows if self._sum is None else self._sum + rows

    def figures(self) -> Figures | None:
        """The entry of the report: `values` are `WIDTH` numbers, `rows` how many were averaged, `features` their width
        before the projection, `source` what they are; None: nothing was collected, or it is not finite."""
        if self._sum is None or not bool(self._sum.isfinite().all()):
            return None
        values = projected(self._sum / self._rows)
        return {"values": values.tolist(), "rows": self._rows, "features": len(self._sum), "source": self._source}


def projected(mean: Tensor) -> Tensor:
    """Random projection (WIDTH,) float64 of features (D,) float64, of the same expected length (Johnson-Lindenstrauss):
    entries are normal with variance 1 / WIDTH."""
    draws = torch.Generator().manual_seed(SEED)
    matrix = torch.randn(len(mean), WIDTH, generator=draws, dtype=torch.float64) / math.sqrt(WIDTH)
    return mean @ matrix
