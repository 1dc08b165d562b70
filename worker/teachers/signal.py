"""What a teacher says about a batch, and the teacher that says it in process."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from worker.students.classifier import Classifier


class TeacherSignal(NamedTuple):
    """Without gradient."""

    logits: Tensor
    """Dense (B, C)."""
    head: Tensor | None = None
    """Weight (C, D) of the last linear layer that gives a number per class; the same for every batch."""


class Teacher:
    """A frozen model with its own preprocessing, run on the raw pixels that the student sees."""

    def __init__(self, model: Classifier) -> None:
        self.model = model.eval()
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        self._head = next((layer for layer in reversed(layers) if layer.out_features == model.config.classes), None)

    def to(self, device: torch.device) -> Teacher:
        self.model.to(device)
        return self

    def __call__(self, images: Tensor) -> TeacherSignal:
        """Say something about raw `images` (B, C, H, W)."""
        with torch.inference_mode():
            logits = self.model(images)
        head = None if self._head is None else self._head.weight.detach()
        return TeacherSignal(logits.clone(), head)  # an inference tensor could not be saved for the backward pass
