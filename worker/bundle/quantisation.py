"""Figures of a quantised student beside those of its weights in float32."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor

from app.recipe.report import ONNX, SPIKING
from app.recipe.students.architectures import BuiltIn
from app.recipe.students.quantisation import QuantisationSpec
from worker.bundle.export import export_onnx
from worker.bundle.spiking import spiking_figures
from worker.bundle.verify import QUANTISED_TOLERANCE, TOLERANCE
from worker.students.model import Model
from worker.students.quantisers import quantised_layers, without_quantisers
from worker.tasks.base import Figures, TaskEvaluator
from worker.training.measure import speed


def quantisation_of(model: Model) -> QuantisationSpec | None:
    """Quantisation of a model's layers; none: they compute in float32."""
    network = model.config.architecture
    return network.quantise if isinstance(network, BuiltIn) else None


def graph_tolerance(model: Model) -> float:
    """Tolerance of a graph's outputs, as `verify.TOLERANCE`."""
    spec = quantisation_of(model)
    return QUANTISED_TOLERANCE if spec is not None and spec.rounds_inputs else TOLERANCE


def quantisation_figures(model: Model, evaluator: TaskEvaluator, samples: Tensor, folder: Path) -> Figures:
    """Kind and number of quantised layers of a model on the CPU, and `float`: metrics, bytes and speed of an ONNX graph
    of the same weights without quantisers, written to a new folder within `folder` and removed. Empty if it has none.

    Of a spiking network in `folder` also its metrics over time. `samples` (N, ...) are raw ones, for the measurement of
    speed.
    """
    spec = quantisation_of(model)
    if spec is None:
        return {}
    plain = Model(model.config, without_quantisers(model.network), model.input_key).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        call = export_onnx(plain, Path(scratch))
        figures: Figures = dict(evaluator.evaluate_graph(call, plain).evaluation.metrics)
        figures |= {"bytes": (Path(scratch) / ONNX).stat().st_size, "latency_runtime": "onnxruntime"}
        figures |= speed(call, samples.cpu())
    layers = sum(1 for _ in quantised_layers(model.network))
    over_time = {"spiking": spiking_figures(model, evaluator, folder)} if (folder / SPIKING).exists() else {}
    return {"kind": spec.kind, "layers": layers, "float": figures, **over_time}
