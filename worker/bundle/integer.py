"""Writes a student that was trained with `shift-quant` as integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.recipe.report import INTEGER
from worker.bundle.integer_reader import Array, predict
from worker.students.model import Model, Normalize, Rescale
from worker.students.quantisers import quantised_layers
from worker.students.quantisers.shift_quant import ShiftQuantiser
from worker.tasks.base import Call


def export_integer(model: Model, folder: Path) -> Call:
    """Write `model.integer.npz` from `model` (on the CPU) and open it with NumPy.

    `layers`, `largest` (q), preprocessing (`scale`, `mean`, `std`) and scaling of outputs; of layer i `weight_i` (O, C)
    int8, `shifts_i` (C,) int32, `steps_i` (C,) float32, `unit_i` float32 and `bias_i` (O,) float32.
    """
    np.savez(folder / INTEGER, **integer_arrays(model))  # type: ignore[arg-type]  # NumPy's other keyword is a flag

    with np.load(folder / INTEGER, allow_pickle=False) as file:
        arrays = dict(file)

    def call(samples: Tensor) -> Tensor:
        return torch.from_numpy(predict(arrays, samples.cpu().numpy()))

    return call


def integer_arrays(model: Model) -> dict[str, Array]:
    """The arrays of the file, by name; see `export_integer`."""
    layers = [layer for _, layer in quantised_layers(model.network)]
    arrays: dict[str, Any] = {"layers": np.int32(len(layers)), **preprocessing_arrays(model), **scaling_arrays(model)}
    for number, layer in enumerate(layers):
        quantiser = layer.quantiser
        assert isinstance(quantiser, ShiftQuantiser)
        scales, weight = quantiser.input_scales(), layer.weight.detach()
        bias = layer.bias.detach() if layer.bias is not None else torch.zeros(len(weight))
        arrays |= {
            "largest": np.int32(quantiser.spec.largest),
            f"weight_{number}": quantiser.integer_weight(weight)[0].to(torch.int8).numpy(),
            f"shifts_{number}": scales.shifts.int().numpy(),
            f"steps_{number}": scales.steps.numpy(),
            f"unit_{number}": quantiser.unit(weight).numpy(),
            f"bias_{number}": bias.numpy(),
        }
    return arrays


def preprocessing_arrays(model: Model) -> dict[str, Any]:
    """`scale`, `mean` and `std` of raw samples, which broadcast to them."""
    given = model.preprocess
    assert isinstance(given, Normalize)  # of images and tables
    return {"scale": np.float32(given.scale), "mean": given.mean.cpu().numpy(), "std": given.std.cpu().numpy()}


def scaling_arrays(model: Model) -> dict[str, Any]:
    """`target_mean` and `target_std` (C,) of a regression; else 0 and 1."""
    given = model.rescale
    if isinstance(given, Rescale):
        return {"target_mean": given.mean.cpu().numpy(), "target_std": given.std.cpu().numpy()}
    return {"target_mean": np.float32(0), "target_std": np.float32(1)}
