"""What a teacher says about a batch, and the teacher that says it in process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from app.recipe.taps import Tap
from worker.data.batches import Batch
from worker.students.model import Model
from worker.students.recorder import Recorder


@dataclass(frozen=True, eq=False)
class TeacherSignal:
    """Without gradient."""

    logits: Tensor
    """Dense logits or numbers (B, C)."""
    head: Tensor | None = None
    """Weight (C, D) of the last linear layer that gives a number per class; the same for every batch."""
    features: Mapping[Tap, Tensor] = field(default_factory=dict)
    """Activations (B, ...)."""
    tokens: Tensor | None = None
    """(B, S) bool: which of the teacher's tokens aren't padding; none where it reads no text."""


class Source(Protocol):
    """Whatever gives the signal of one teacher."""

    @property
    def answered(self) -> int:
        """Samples that the teacher itself was run on so far."""
        ...

    def __call__(self, batch: Batch) -> TeacherSignal:
        """Say something about a batch, as the student sees it."""
        ...


class Teacher:
    """A frozen model with its own preprocessing, run on the raw samples that the student sees."""

    def __init__(self, model: Model, recorder: Recorder | None = None) -> None:
        self.model = model.eval()
        self._recorder = recorder or Recorder(model.network, ())
        self._head = _last_layer(model)
        self.answered = 0

    def __call__(self, batch: Batch) -> TeacherSignal:
        self.answered += len(batch)
        samples = batch.inputs[self.model.view]
        with torch.inference_mode():
            logits = self.model(samples)
        head = None if self._head is None else self._head.weight.detach()
        # an inference tensor could not be saved for the backward pass
        features = {tap: seen.clone() for tap, seen in self._recorder.take().items()}
        return TeacherSignal(logits.clone(), head, features, self.model.tokens(samples))


def head_of(model: Model) -> Tensor | None:
    """Weight (C, D) of the last linear layer that gives a number per class, where there is one; without gradient."""
    layer = _last_layer(model)
    return None if layer is None else layer.weight.detach()


def _last_layer(model: Model) -> nn.Linear | None:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return next((layer for layer in reversed(layers) if layer.out_features == model.config.outputs), None)
