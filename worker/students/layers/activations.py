"""Activations, of tensors of any shape and floating dtype."""

from __future__ import annotations

from torch import nn

from app.recipe.students.layers import Gelu, LeakyRelu, Relu, Silu
from worker.students.layers.registry import LayerRegistry

ACTIVATIONS = LayerRegistry[[]]()


@ACTIVATIONS.register(Relu)
def _relu(spec: Relu) -> nn.Module:
    return nn.ReLU()


@ACTIVATIONS.register(LeakyRelu)
def _leaky_relu(spec: LeakyRelu) -> nn.Module:
    return nn.LeakyReLU(spec.slope)


@ACTIVATIONS.register(Gelu)
def _gelu(spec: Gelu) -> nn.Module:
    return nn.GELU()


@ACTIVATIONS.register(Silu)
def _silu(spec: Silu) -> nn.Module:
    return nn.SiLU()
