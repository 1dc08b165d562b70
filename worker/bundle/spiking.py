"""Writes a student with binary weights as a spiking network, and evaluates it over its time steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from app.recipe.report import SPIKING
from app.recipe.students.architectures import BuiltIn
from app.recipe.students.quantisation import Binary
from worker.bundle.integer import preprocessing_arrays, scaling_arrays
from worker.bundle.spiking_reader import Array, predict, read_weights
from worker.students.model import Model
from worker.students.quantisers.binary import ScaledRelu, centred, signs_of
from worker.tasks.base import Call, Figures, TaskEvaluator

REPORTED = (10, 20, 50, 100)
"""Time steps after which the network is evaluated, beside the last one."""


def export_spiking(model: Model, folder: Path) -> Call:
    """Write `model.spiking.npz` from `model` (on the CPU) and open it with NumPy.

    `first` (D, K) and `last` (C, E) float32; of binary layer i of `layers` `signs_i` (O, ⌈I / 8⌉) uint8, bits, and
    `scales_i` (O,) float32; preprocessing (`scale`, `mean`, `std`), scaling of outputs, and `steps`.
    """
    np.savez(folder / SPIKING, **spiking_arrays(model))  # type: ignore[arg-type]  # NumPy's other keyword is a flag
    file = _opened(folder)
    return _CountingCall(file, int(file["steps"]))


def spiking_arrays(model: Model) -> dict[str, Array]:
    """The arrays of the file, by name; see `export_spiking`. Weights of a layer are multiplied by the threshold of the
    layer before and divided by its own, so that all neurons spike at 1; those of the last layer are only multiplied."""
    linear = [layer.weight.detach() for layer in model.network.modules() if isinstance(layer, nn.Linear)]
    factors = [float(layer.factor) for layer in model.network.modules() if isinstance(layer, ScaledRelu)]
    spec = binary_spec(model)
    arrays: dict[str, Any] = {
        **{"layers": np.int32(len(linear) - 2), "steps": np.int32(spec.steps)},
        **{"first": (linear[0] / factors[0]).numpy(), "last": (linear[-1] * factors[-1]).numpy()},
        **preprocessing_arrays(model),
        **scaling_arrays(model),
    }
    for number, weight in enumerate(linear[1:-1]):
        latent, ratio = centred(weight), factors[number] / factors[number + 1]
        arrays[f"signs_{number}"] = np.packbits((signs_of(latent) > 0).numpy(), axis=1)
        arrays[f"scales_{number}"] = (latent.abs().mean(1) * ratio).numpy()
    return arrays


def binary_spec(model: Model) -> Binary:
    """The quantisation of a student with binary weights."""
    network = model.config.architecture
    assert isinstance(network, BuiltIn)
    assert isinstance(network.quantise, Binary)
    return network.quantise


class Operations(NamedTuple):
    """Operations of one inference."""

    multiplications: int
    """Of the first layer, once."""
    additions: float
    """One for every neuron and step, and for every spike one at each neuron that it reaches."""


def operations(weights: Sequence[Array], spikes: Sequence[float], steps: int) -> Operations:
    """Estimated operations of `steps` time steps with so many spikes of each layer; `weights` are (K, D), (D, E), …"""
    neurons = sum(weight.shape[1] for weight in weights)
    reached = sum(count * weight.shape[1] for count, weight in zip(spikes, weights[1:], strict=True))
    return Operations(weights[0].size, steps * neurons + reached)


@dataclass
class _CountingCall:
    """Runs the network for some steps, and counts the spikes of every layer."""

    file: dict[str, Array]
    steps: int
    samples: int = 0
    spikes: list[int] = field(default_factory=list)

    def __call__(self, samples: Tensor) -> Tensor:
        outputs, counts = predict(self.file, samples.cpu().numpy(), self.steps)
        found = [int(each.sum()) for each in counts]
        self.spikes = [a + b for a, b in zip(self.spikes or [0] * len(found), found, strict=True)]
        self.samples += len(outputs)
        return torch.from_numpy(outputs)


def spiking_figures(model: Model, evaluator: TaskEvaluator, folder: Path) -> list[Figures]:
    """Metrics, spikes and estimated operations of the file in `folder` after some of its time steps and all of them,
    for one held-out sample."""
    file = _opened(folder)
    weights, last = read_weights(file), int(file["steps"])
    rows: list[Figures] = []
    for steps in sorted({last, *(each for each in REPORTED if each < last)}):
        call = _CountingCall(file, steps)
        metrics = evaluator.evaluate_graph(call, model).evaluation.metrics
        spikes = [count / call.samples for count in call.spikes]
        found = operations(weights, spikes, steps)
        rows.append({"steps": steps, **metrics, "spikes": sum(spikes), **found._asdict()})
    return rows


def _opened(folder: Path) -> dict[str, Array]:
    with np.load(folder / SPIKING, allow_pickle=False) as file:
        return dict(file)
