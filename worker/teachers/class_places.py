"""A classifier brought to other classes: some of its own, in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from worker.students.model import Model, last_layer


@torch.no_grad()
def take_classes(model: Model, places: Sequence[int], names: Sequence[str] | None) -> None:
    """Have output i of `model` be what its output `places[i]` was, and have it called `names[i]`, in place.

    The rows of its last layer are what is chosen and moved, so that whoever looks at the layer, its weights or the
    outputs finds the same order everywhere, and nothing is left to do when it runs.
    """
    told = None if names is None else list(names)
    if list(places) != list(range(model.config.outputs)):
        layer = last_layer(model)
        if layer is None:
            raise TypeError("a classifier without a last linear layer")
        rows = torch.tensor(list(places), device=layer.weight.device)
        layer.weight = nn.Parameter(layer.weight[rows].clone(), requires_grad=layer.weight.requires_grad)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[rows].clone(), requires_grad=layer.bias.requires_grad)
        layer.out_features = len(places)
    model.config = model.config.model_copy(update={"classes": len(places), "class_names": told})
