"""What a teacher says about a batch, and the teacher that says it in process."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worker.students.classifier import Classifier


class TeacherSignal(NamedTuple):
    """Dense logits (B, C), without gradient."""

    logits: Tensor


class Teacher:
    """A frozen model with its own preprocessing, run on the raw pixels that the student sees."""

    def __init__(self, model: Classifier) -> None:
        self.model = model.eval()

    def to(self, device: torch.device) -> Teacher:
        self.model.to(device)
        return self

    def __call__(self, images: Tensor) -> TeacherSignal:
        """Say something about raw `images` (B, C, H, W)."""
        with torch.inference_mode():
            logits = self.model(images)
        return TeacherSignal(logits.clone())  # an inference tensor could not be saved for the student's backward pass
