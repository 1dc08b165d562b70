"""Conventions about tensors that every room keeps."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of a row that counts for nothing."""


def at_least_float32(logits: Tensor) -> Tensor:
    """`logits`, of any shape and floating dtype, unchanged when they are float32 or float64, else as float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
