"""Multi-head self-attention over tokens, by its kind in the contract; one module per kind."""

from __future__ import annotations

from worker.kernels.sigmoid_attention import NO_MASK as NO_MASK
from worker.kernels.sigmoid_attention import AttentionMask as AttentionMask
from worker.students.layers.attentions import linear, nala, sigmoid, soft, softmax, softplus
from worker.students.layers.attentions.base import ATTENTIONS as ATTENTIONS
from worker.students.layers.attentions.base import SelfAttention as SelfAttention

__all__ = ["ATTENTIONS", "NO_MASK", "AttentionMask", "SelfAttention"]
__all__ += ["linear", "nala", "sigmoid", "soft", "softmax", "softplus"]
"""The registry, and the modules that fill it."""
