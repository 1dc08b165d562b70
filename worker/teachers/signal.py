"""What a teacher says about a batch, and the teacher that says it in process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from app.recipe.losses.taps import Tap
from worker.data.batches import ROWS, Batch
from worker.students.hidden_states import HiddenStates, LikeliestTokens
from worker.students.model import Model
from worker.students.recorder import Recorder

Answer = Tensor | HiddenStates | LikeliestTokens


@dataclass(frozen=True, eq=False)
class TeacherSignal:
    """Without gradient."""

    answer: Answer
    """Dense logits or numbers (B, C); of a language model what its last layer would make logits of, or the largest of
    them."""
    head: Tensor | None = None
    """Weight (C, D) of the last linear layer that gives a number per class; the same for every batch."""
    features: Mapping[Tap, Tensor] = field(default_factory=dict)
    """Activations (B, ...)."""
    tokens: Tensor | None = None
    """(B, S) bool: which of the teacher's tokens aren't padding; none where it reads no text."""
    rows: Tensor | None = None
    """(B, S) int64: for every token of the student's the place in the teacher's sequence that has read the same text,
    -1 where there is none; none: the tokens are the same ones."""

    @property
    def logits(self) -> Tensor:
        """The answer for whole samples. Raises TypeError for a language model's."""
        if not isinstance(self.answer, Tensor):
            raise TypeError("the logits of a language model are made where they are used, some rows at a time")
        return self.answer


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


def last_layer(model: Model) -> nn.Linear | None:
    """The last linear layer that gives a number per class, where there is one."""
    layers = {name: layer for name, layer in model.network.named_modules() if isinstance(layer, nn.Linear)}
    fitting = [name for name, layer in layers.items() if layer.out_features == model.config.outputs]
    body = getattr(model.network, "base_model_prefix", None)  # the library may list what comes behind the body first
    behind = [name for name in fitting if body and not name.startswith(f"{body}.")]
    return layers[(behind or fitting)[-1]] if fitting else None
