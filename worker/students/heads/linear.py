"""The linear head."""

from __future__ import annotations

from torch import nn

from app.recipe.students.heads import LinearHead
from worker.students.heads.registry import HEADS


@HEADS.register(LinearHead)
def _linear(spec: LinearHead, width: int, outputs: int) -> nn.Module:
    return nn.Linear(width, outputs)
