"""Norms that are one factor and one offset per channel in evaluation, folded into the linear layers behind them."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from worker.students.layers.attentions.linear import LinearSelfAttention
from worker.students.layers.attentions.softmax import SoftmaxSelfAttention
from worker.students.layers.window_norm import WindowNorm
from worker.students.model import Model
from worker.students.vit import VitNetwork


def with_folded_norms(model: Model) -> Model:
    """A copy of `model`, for evaluation, in which every unified norm of tokens with a linear layer behind it is an
    identity, and that layer has W diag(f) and b + W o for its factors f and offsets o; `model` itself if there is no
    such norm."""
    network = model.network
    if not (isinstance(network, VitNetwork) and isinstance(network.norm, WindowNorm)):
        return model
    copied = deepcopy(model)
    assert isinstance(copied.network, VitNetwork)  # as the model
    for block in copied.network.blocks:
        if isinstance(block.attention, LinearSelfAttention | SoftmaxSelfAttention):  # which read by this layer alone
            _fold(block, "norm1", block.attention.get_submodule("qkv"))
        _fold(block, "norm2", block.get_submodule("feed_forward.0"))
    _fold(copied.network, "norm", copied.network.head)
    return copied


@torch.no_grad()
def _fold(parent: nn.Module, name: str, layer: nn.Module) -> None:
    norm = parent.get_submodule(name)
    if isinstance(norm, WindowNorm) and type(layer) is nn.Linear:  # a head that is derived from it computes otherwise
        layer.bias.add_(layer.weight @ norm.bias)
        layer.weight.mul_(norm.factor)
        setattr(parent, name, nn.Identity())
