"""Mean and variance of activations over depth (1706.02515)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import activation

from app.recipe.diagnostics import ActivationMoments
from app.recipe.plan import EVAL_BATCH
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, NotComputable
from worker.diagnostics.pictures import draw_panels, label
from worker.students.layers.activations import HermiteCubic, SeluDropout
from worker.students.model import Model
from worker.tasks.prediction import evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OF_A_LIBRARY = "transformers.activations"
"""Module of the Transformers library with its activations."""


class Moments:
    """Count, mean and sum of squared differences from it, of all values so far."""

    def __init__(self) -> None:
        self.count, self.mean, self.spread = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Add floating values of any shape, by the parallel formula, which does not cancel far from 0."""
        wide = values.double()
        count, mean = wide.numel(), float(wide.mean())
        spread, whole = float((wide - mean).square().sum()), self.count + count
        self.spread += spread + (mean - self.mean) ** 2 * self.count * count / whole
        self.mean += (mean - self.mean) * count / whole
        self.count = whole

    @property
    def variance(self) -> float:
        """Variance of all values."""
        return self.spread / self.count


class LayerMoments(NamedTuple):
    """Moments of the outputs of one activation."""

    layer: str
    mean: float
    variance: float


class ActivationMomentsAnalysis:
    """Figures of the student (`student`) and of every teacher, by its name: those of the first and the last activation,
    and the extremes of the variance."""

    def __init__(self, spec: ActivationMoments) -> None:
        self._spec = spec

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        samples = inputs.judged.samples
        found = {
            name: layer_moments(model, samples.inputs[model.input_key], inputs.device)
            for name, model in inputs.models.items()
        }
        rows: list[dict[str, Any]] = [
            {"model": name, **each._asdict()} for name, layers in found.items() for each in layers
        ]
        figures = {name: _figures(layers) for name, layers in found.items()}
        return DiagnosticResult(figures, rows, partial(draw_panels, found, _draw))


def layer_moments(model: Model, samples: Tensor, device: torch.device) -> list[LayerMoments]:
    """Moments of every activation in the order in which they are first computed, for raw samples (N, …), in evaluation
    mode. Raises `NotComputable` if the network has no activation as a module."""
    found: dict[str, Moments] = {}

    def record(name: str, _module: nn.Module, _given: Any, output: Tensor) -> None:
        found.setdefault(name, Moments()).add(output)

    hooks = [module.register_forward_hook(partial(record, name)) for name, module in _activations(model.network)]
    try:
        with evaluating(model):
            for batch in torch.split(samples, EVAL_BATCH):
                model(batch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise NotComputable("a network has no activation that is a module")
    return [LayerMoments(name, each.mean, each.variance) for name, each in found.items()]


def _activations(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        kind = type(module)
        of_torch = kind.__module__ == activation.__name__ and not isinstance(module, nn.MultiheadAttention)
        if of_torch or kind.__module__ == OF_A_LIBRARY or isinstance(module, SeluDropout | HermiteCubic):
            yield name, module


def _figures(layers: Sequence[LayerMoments]) -> Mapping[str, float]:
    variances = [each.variance for each in layers]
    return {
        **{"first_mean": layers[0].mean, "first_variance": layers[0].variance},
        **{"last_mean": layers[-1].mean, "last_variance": layers[-1].variance},
        **{"smallest_variance": min(variances), "largest_variance": max(variances)},
    }


def _draw(axes: Axes, name: str, layers: Sequence[LayerMoments]) -> None:
    depth = range(1, len(layers) + 1)
    axes.plot(depth, [each.mean for each in layers], marker=".", label="mean")
    axes.plot(depth, [each.variance for each in layers], marker=".", label="variance")
    axes.axhline(0.0, color="grey", linewidth=0.5)
    axes.axhline(1.0, color="grey", linewidth=0.5)
    axes.legend(fontsize=7)
    label(axes, name, "activation", "")
