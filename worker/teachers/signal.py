"""What a teacher says about a batch, and the teacher that says it in process."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from worker.data.batches import ROWS, Batch
from worker.outputs import TeacherSignal
from worker.students.model import Model, last_layer
from worker.students.recorder import Recorder


class TeacherSource(Protocol):
    """Whatever gives the signal of one teacher."""

    @property
    def answered(self) -> int:
        """Samples that the teacher itself was run on so far."""
        ...

    def __call__(self, batch: Batch) -> TeacherSignal:
        """Say something about a batch, as the student sees it."""
        ...


class InProcessTeacher:
    """A frozen model with its own preprocessing, run on the raw samples that the student sees, in the arithmetic of its
    weights or by `autocast` in bf16."""

    def __init__(self, model: Model, recorder: Recorder | None = None, *, autocast: bool = False) -> None:
        self.model, self._autocast = model.eval(), autocast
        self._recorder = recorder or Recorder(model.network, ())
        self._head = last_layer(model)
        self.answered = 0

    def __call__(self, batch: Batch) -> TeacherSignal:
        self.answered += len(batch)
        samples = batch.inputs[self.model.input_key]
        if next(self.model.parameters()).device != samples.device:  # it may have left to make room
            self.model.to(samples.device)
        with torch.autocast(samples.device.type, torch.bfloat16, enabled=self._autocast), torch.inference_mode():
            answer = self.model.forward_hidden(samples)
        head = None if self._head is None else self._head.weight.detach()
        # an inference tensor could not be saved for the backward pass
        told = answer.clone() if isinstance(answer, Tensor) else answer._replace(hidden=answer.hidden.clone())
        features = {tap: seen.clone() for tap, seen in self._recorder.take().items()}
        rows = batch.inputs.get(ROWS + self.model.input_key)
        return TeacherSignal(told, head, features, self.model.tokens(samples), rows)


def head_of(model: Model) -> Tensor | None:
    """Weight (C, D) of the last linear layer that gives a number per class, where there is one; without gradient."""
    layer = last_layer(model)
    return None if layer is None else layer.weight.detach()
