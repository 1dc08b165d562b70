"""Sources of a teacher's outputs, and the teacher that is run in this process."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from worker.data.batches import ROWS, Batch
from worker.outputs import TeacherSignal
from worker.students.model import Model, last_layer
from worker.students.recorder import Recorder


class TeacherSource(Protocol):
    """A source of one teacher's outputs."""

    @property
    def computed_samples(self) -> int:
        """Samples that the teacher itself was run on so far."""
        ...

    def __call__(self, batch: Batch) -> TeacherSignal:
        """Outputs for a batch of B samples, as the student reads them; see `TeacherSignal` for shapes and dtypes."""
        ...


class InProcessTeacher:
    """A frozen model with its own preprocessing, run on the raw samples that the student reads.

    Its precision is that of its weights, or bf16 by `autocast`.
    """

    def __init__(self, model: Model, recorder: Recorder | None = None, *, autocast: bool = False) -> None:
        self.model, self._autocast = model.eval(), autocast
        self._recorder = recorder or Recorder(model.network, ())
        self._head = last_layer(model)
        self.computed_samples = 0

    def __call__(self, batch: Batch) -> TeacherSignal:
        self.computed_samples += len(batch)
        samples = batch.inputs[self.model.input_key]
        if next(self.model.parameters()).device != samples.device:  # it may have been moved away to free memory
            self.model.to(samples.device)
        with torch.autocast(samples.device.type, torch.bfloat16, enabled=self._autocast), torch.inference_mode():
            outputs = self.model.forward_hidden(samples)
        head = None if self._head is None else self._head.weight.detach()
        # an inference tensor could not be saved for the backward pass
        outputs = outputs.clone() if isinstance(outputs, Tensor) else outputs._replace(hidden=outputs.hidden.clone())
        features = {tap: activation.clone() for tap, activation in self._recorder.take().items()}
        rows = batch.inputs.get(ROWS + self.model.input_key)
        return TeacherSignal(outputs, head, features, self.model.tokens(samples), rows)


def head_of(model: Model) -> Tensor | None:
    """Weight (C, D), in its own dtype, of the last linear layer that returns a number per class, without gradient;
    none: there is no such layer."""
    layer = last_layer(model)
    return None if layer is None else layer.weight.detach()
