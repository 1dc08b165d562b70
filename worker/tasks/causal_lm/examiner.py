"""Measures the teachers of a language model on held-out texts before training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.data.batches import Batch
from worker.data.task_data import TaskData
from worker.students.model import Model
from worker.tasks.base import HeldOut, Metrics
from worker.tasks.causal_lm.evaluator import evaluate_model, labels_of
from worker.tensors import IGNORED

CHECKED_TOKENS = 4096
"""Held-out tokens on which a teacher is measured, in whole sequences, if not on all."""
COUNTED = 256
"""Training sequences from which token frequencies are computed."""


class TokenExaminer:
    """Examines on all held-out sequences, or on evenly spaced ones; logits are not stored."""

    unit: str = "tokens"

    def __init__(self, data: TaskData, *, whole: bool) -> None:
        self._data = data
        self._held = data.eval
        length = max(samples.shape[1] for samples in data.eval.inputs.values())
        most = max(1, CHECKED_TOKENS // length)
        if not whole and self._held.samples > most:
            chosen = torch.linspace(0, self._held.samples - 1, most).long()
            self._held = self._held.take(chosen.to(self._held.storage_device))
        self._bytes = data.bytes if self._held is data.eval else 0
        self.samples = len(_labels(self._held, data.input_key or ""))

    def measure(self, model: Model) -> tuple[Metrics, Tensor | None]:
        """See `TeacherExaminer`."""
        return evaluate_model(model, HeldOut(self._held, self._bytes)).evaluation.metrics, None

    def baseline(self, model: Model) -> tuple[Metrics, str]:
        """Token frequencies in training texts, with add-one smoothing."""
        train, width = self._data.train, model.config.outputs
        some = train.between(0, min(len(train), COUNTED))
        counts = torch.bincount(_labels(some, model.input_key), minlength=width).double() + 1
        logs = F.log_softmax(counts.log(), dim=0)
        nll = -float(logs[_labels(self._held, model.input_key)].mean())
        return {"perplexity": math.exp(min(nll, 700.0))}, "the frequency of each token"

    def oddities(self, outputs: Tensor | None) -> Iterator[str]:
        """None: these need logits (N, V) float32, which are not stored."""
        yield from ()


def _labels(samples: Batch, input_key: str) -> Tensor:
    """Valid labels (n,) int64 on the CPU; packed texts are read some rows at a time."""
    labels = torch.cat([labels_of(part, input_key).cpu() for part in samples.parts(COUNTED)])
    return labels[labels != IGNORED]
