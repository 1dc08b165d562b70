"""The head of a support vector machine (1306.0239)."""

from __future__ import annotations

from torch import nn

from app.recipe.students.heads import SvmHead
from worker.students.heads.registry import HEADS


@HEADS.register(SvmHead)
def _svm(spec: SvmHead, width: int, outputs: int) -> nn.Module:
    return nn.Linear(width, outputs)
