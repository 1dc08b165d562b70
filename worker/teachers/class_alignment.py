"""Aligns a classifier's outputs with the job's classes: a selection of its own classes, in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from worker.students.dual_encoder import DualEncoderNetwork
from worker.students.model import Model, last_layer


@torch.no_grad()
def take_classes(model: Model, places: Sequence[int], names: Sequence[str] | None) -> None:
    """Change `model` in place: output i becomes its former output `places[i]`, with the class name `names[i]`.

    The rows of the last layer's weight (C, D) and bias (C,), or its codes (C,), are selected and reordered, so that the
    layer, its weights and the outputs have the same order everywhere, and a forward pass costs nothing more.
    """
    class_names = None if names is None else list(names)
    if list(places) != list(range(model.config.outputs)):
        if isinstance(model.network, DualEncoderNetwork):
            model.network.take_labels(torch.tensor(list(places), device=model.network.labels.device))
        else:
            _take_rows(model, places)
    model.config = model.config.model_copy(update={"classes": len(places), "class_names": class_names})


def _take_rows(model: Model, places: Sequence[int]) -> None:
    """Select rows of the last layer; raises TypeError if there is none."""
    if model.codebook is not None:
        codes = model.codebook.codes
        model.codebook.codes = codes[torch.tensor(list(places), device=codes.device)]
        return
    layer = last_layer(model)
    if layer is None:
        raise TypeError("a classifier without a last linear layer")
    rows = torch.tensor(list(places), device=layer.weight.device)
    layer.weight = nn.Parameter(layer.weight[rows].clone(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[rows].clone(), requires_grad=layer.bias.requires_grad)
    layer.out_features = len(places)
